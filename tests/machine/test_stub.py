"""Machines behind other people's stubs: QEMU's, gdbserver's, and peers that are none."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmgdb.demo.process import end, start
from kvmgdb.errors import (
    KvmgdbError,
    MachineError,
    NoRamError,
    ProtocolError,
    TargetGoneError,
    TargetTimeoutError,
    UnsupportedError,
)
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.interface import Action, BreakpointKind, StopEvent, StopReason
from kvmgdb.machine.qemu import QemuMachine
from kvmgdb.machine.qemu_process import read_qemu_process
from kvmgdb.machine.qemu_registers import decode_info_registers
from kvmgdb.machine.registers import Group, RegisterFile
from kvmgdb.machine.stub import StubMachine
from kvmgdb.machine.stub_client import StubClient
from tests.machine.rom_guest import COUNTERS, RomGuest
from tests.support.polling import wait_for
from tests.support.qemu import free_port
from tests.support.require import requires

GDBSERVER = Path(sys.prefix) / "bin" / "gdbserver"
GENERAL = frozenset({Group.GENERAL})


def wait_stop(machine: StubMachine) -> StopEvent:
    event = wait_for("the machine stops", machine.poll)
    assert event is not None
    return event


@pytest.fixture
def stub(rom_guest: RomGuest) -> Iterator[StubMachine]:
    """QEMU's stub, and nothing else of QEMU."""
    port = free_port()
    rom_guest.hmp(f"gdbserver tcp:127.0.0.1:{port}")
    machine = StubMachine.open(SocketAddress(host="127.0.0.1", port=port))
    yield machine
    machine.close()
    rom_guest.hmp("gdbserver none")
    rom_guest.qmp("stop")


def test_registers_and_memory(stub: StubMachine, rom_guest: RomGuest) -> None:
    assert len(stub.vcpus) == 2
    vcpu = stub.vcpus[0]
    assert stub.breakpoints is not None
    stub.breakpoints.insert(BreakpointKind.HARDWARE, rom_guest.symbol("work"), 1)
    stub.resume({0: Action.CONTINUE})
    event = wait_stop(stub)
    assert (event.reason, event.vcpu) == (StopReason.HARDWARE_BREAKPOINT, 0)
    registers = vcpu.read_registers(GENERAL)
    assert registers.get("rip") == rom_guest.symbol("work")
    assert registers.get("r12") == 0x123456789ABCDEF0
    image = rom_guest.rom.image
    assert vcpu.read_memory(0x30000, 0x3000) == image[:0x3000]
    vcpu.write_memory(0x100000, bytes(range(256)) * 40)
    assert vcpu.read_memory(0x100000, 256 * 40) == bytes(range(256)) * 40
    with pytest.raises(NoRamError):
        vcpu.read_memory(0x8000000, 1)
    vcpu.write_register("rax", (42).to_bytes(8, "little"))
    assert vcpu.read_registers(GENERAL).get("rax") == 42
    stub.resume({0: Action.STEP})
    assert wait_stop(stub).reason is StopReason.STEP
    stub.breakpoints.remove(BreakpointKind.HARDWARE, rom_guest.symbol("work"), 1)
    assert stub.memory is not None
    assert stub.memory.read(0x30000, 64) == image[:64]
    stub.write_physical(0x101000, b"physical")
    assert stub.memory.read(0x101000, 8) == b"physical" == vcpu.read_memory(0x101000, 8)


def test_stop_and_watch(stub: StubMachine) -> None:
    assert stub.breakpoints is not None
    stub.resume({0: Action.CONTINUE, 1: Action.CONTINUE})
    with pytest.raises(MachineError, match="the guest is running"):
        stub.vcpus[0].read_memory(0, 1)
    assert stub.stop().reason is StopReason.REQUEST
    assert stub.stop().reason is StopReason.REQUEST
    stub.breakpoints.insert(BreakpointKind.WRITE, COUNTERS + 0x100, 8)
    stub.resume({0: Action.CONTINUE})
    event = wait_stop(stub)
    assert event.reason is StopReason.WATCHPOINT
    assert (event.address, event.watch) == (COUNTERS + 0x100, BreakpointKind.WRITE)
    stub.breakpoints.remove(BreakpointKind.WRITE, COUNTERS + 0x100, 8)


def test_a_stub_whose_machine_dies() -> None:
    with RomGuest() as guest:
        port = free_port()
        guest.hmp(f"gdbserver tcp:127.0.0.1:{port}")
        machine = StubMachine.open(SocketAddress(host="127.0.0.1", port=port))
        machine.resume({0: Action.CONTINUE})
        guest.process.kill()
        assert wait_stop(machine).reason is StopReason.EXITED
        assert machine.poll() is None
        with pytest.raises(TargetGoneError):
            machine.vcpus[0].read_memory(0, 1)
        machine.close()
        machine.close()


def test_info_registers_is_decoded(rom_guest: RomGuest) -> None:
    text = rom_guest.hmp("info registers").replace("\r\n", "\n")
    file = RegisterFile()
    decode_info_registers(text, file)
    for name in ("GDT", "IDT"):
        match = re.search(rf"^{name}= +([0-9a-f]+) ([0-9a-f]+)", text, re.M)
        assert match
        assert file.get(f"{name.lower()}r_base") == int(match[1], 16)
        assert file.get(f"{name.lower()}r_limit") == int(match[2], 16)
    match = re.search(r"^CS =([0-9a-f]+) ([0-9a-f]+) ([0-9a-f]+)", text, re.M)
    assert match
    assert file.get("cs_base") == int(match[2], 16)
    assert file.get("cs_limit") == int(match[3], 16)
    assert file.get("dr6") == 0xFFFF0FF0
    assert file.get("rax") is None


def test_wide_registers_and_junk() -> None:
    file = RegisterFile()
    decode_info_registers(
        "YMM03=1111111111111111 2222222222222222 3333333333333333 4444444444444444\n"
        "YMM99=1111111111111111 2222222222222222 3333333333333333 4444444444444444\n"
        "YMM04=1111\nDR9=0000000000000001\nCS =zz\nGDT=\n",
        file,
    )
    assert file.get("ymm3h") == 0x11111111111111112222222222222222
    assert sum(file.known) == 1
    decode_info_registers("", file)
    decode_info_registers("\0\xff" * 1000, file)
    assert sum(file.known) == 1


@pytest.fixture
def gdbserver() -> Iterator[SocketAddress]:
    """gdbserver with a program: a stub that is no virtual machine's."""
    if not GDBSERVER.exists():
        pytest.skip(f"needs {GDBSERVER}")
    port = free_port()
    process = start([str(GDBSERVER), "--once", f"127.0.0.1:{port}", "/bin/cat"])
    address = SocketAddress(host="127.0.0.1", port=port)

    def listens() -> bool:
        # Its one connection must not be spent on a look.
        entry = f":{port:04X} 00000000:0000 0A"
        return entry in Path("/proc/net/tcp").read_text()

    wait_for("gdbserver listens", listens)
    yield address
    end(process)


@requires("gdb18")
def test_gdbserver(gdbserver: SocketAddress) -> None:
    machine = StubMachine.open(gdbserver)
    assert len(machine.vcpus) == 1
    vcpu = machine.vcpus[0]
    assert machine.monitor is None
    assert machine.memory is None
    with pytest.raises(UnsupportedError):
        machine.write_physical(0, b"x")
    before = vcpu.read_registers(GENERAL)
    rip, rsp = before.get("rip"), before.get("rsp")
    assert rip is not None
    assert rsp is not None
    assert before.get("cs") == 0x33
    assert vcpu.read_registers(frozenset({Group.CONTROL})).get("cr3") is None
    assert vcpu.paging() is None
    code = vcpu.read_memory(rip, 16)
    assert len(code) == 16
    vcpu.write_memory(rsp - 64, b"kvmgdb")
    assert vcpu.read_memory(rsp - 64, 6) == b"kvmgdb"
    machine.resume({0: Action.STEP})
    assert wait_stop(machine).reason is StopReason.STEP
    assert vcpu.read_registers(GENERAL).get("rip") != rip
    machine.close()


def serving(answer: bytes) -> tuple[subprocess.Popen[bytes], int]:
    """A peer that answers whatever it gets with ``answer``, in a process of its own."""
    port = free_port()
    program = (
        "import socket,sys\n"
        f"s=socket.create_server(('127.0.0.1',{port}))\n"
        "print('up',flush=True)\n"
        "c,_=s.accept()\n"
        f"answer={answer!r}\n"
        "try:\n"
        "    while c.recv(4096): c.sendall(answer)\n"
        "except OSError: pass\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return process, port


@contextmanager
def peer(answer: bytes) -> Iterator[SocketAddress]:
    process, port = serving(answer)
    try:
        yield SocketAddress(host="127.0.0.1", port=port)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("answer", "errors"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", (TargetTimeoutError, ProtocolError)),
        (b"", (TargetTimeoutError,)),
        (b"$PacketSize=400#zz", (ProtocolError,)),
        (b"$" + b"x" * 100000, (TargetTimeoutError, ProtocolError)),
        (b"+$PacketSize=zz;;=;#%02x" % (sum(b"PacketSize=zz;;=;") % 256), (KvmgdbError,)),
        (b"+$}#7d", (KvmgdbError,)),
        (b"+$*#2a", (KvmgdbError,)),
        (b"+$#00", (KvmgdbError,)),
        (b"+$T05#b9", (KvmgdbError,)),
        (b"+$W00#b7", (KvmgdbError,)),
        (b"+$OK#9a", (KvmgdbError,)),
    ],
)
def test_peers_that_are_no_stub(
    answer: bytes, errors: tuple[type[Exception], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmgdb.machine.stub_client.REQUEST_TIMEOUT", 0.5)
    monkeypatch.setattr(StubClient.__init__, "__defaults__", (0.5,))
    with peer(answer) as address:
        begin = time.monotonic()
        with pytest.raises(errors):
            StubMachine.open(address)
        assert time.monotonic() - begin < 60


def test_a_server_that_is_killed_gives_the_guest_back(rom_guest: RomGuest) -> None:
    """The guardian removes breakpoints and the stub, and lets the guest run."""
    rom_guest.qmp("cont")
    program = (
        "import sys, time\n"
        "from kvmgdb.machine.qemu import QemuMachine\n"
        "from kvmgdb.machine.qemu_process import read_qemu_process\n"
        "from kvmgdb.machine.interface import BreakpointKind\n"
        f"machine = QemuMachine.open_process(read_qemu_process({rom_guest.pid}))\n"
        "machine.stop()\n"
        f"machine.breakpoints.insert(BreakpointKind.SOFTWARE, {rom_guest.symbol('work')}, 1)\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        holder.kill()

    def given_back() -> bool:
        try:
            labels = [chardev["label"] for chardev in rom_guest.qmp("query-chardev")]
            return "gdb" not in labels and rom_guest.qmp("query-status")["running"] is True
        except (OSError, ValueError):
            return False  # the guardian holds the monitor

    wait_for("the guest runs without a stub", given_back)

    def count() -> str:
        return rom_guest.hmp(f"xp /1gx {COUNTERS:#x}")

    before = count()
    wait_for("the guest counts", lambda: count() != before)
    assert rom_guest.qmp("query-status")["running"] is True
    rom_guest.qmp("stop")


def test_a_stub_that_somebody_else_uses(rom_guest: RomGuest) -> None:
    port = free_port()
    rom_guest.hmp(f"gdbserver tcp:127.0.0.1:{port}")
    process = read_qemu_process(rom_guest.pid)
    assert process is not None
    with socket.create_connection(("127.0.0.1", port)):
        machine = QemuMachine.open_process(process)
        try:
            with pytest.raises(KvmgdbError, match="another debugger is connected"):
                machine.stop()
        finally:
            machine.close()
    rom_guest.hmp("gdbserver none")
    assert os.path.exists(f"/proc/{rom_guest.pid}")
