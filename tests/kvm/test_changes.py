"""QEMU's monitor beside the agent: what it changes while a debugger is attached,
and what it adds."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kvmgdb.errors import BreakpointError, NoRamError, TargetBusyError
from kvmgdb.machine.agent import agent_path
from kvmgdb.machine.interface import (
    Action,
    BreakpointKind,
    MachineInfo,
    StopEvent,
    StopReason,
)
from kvmgdb.machine.kvm import KvmMachine
from kvmgdb.machine.kvm_qemu import qemu_regions
from kvmgdb.machine.qemu_process import (
    QemuProcess,
    busy_stub_address,
    has_client_of_later_socket,
    read_qemu_process,
)
from kvmgdb.machine.registers import Group
from kvmgdb.machine.target import parse_target
from tests.agent.vm import NOBODY
from tests.kvm.guests import image, qemu_guest
from tests.support.gdb import GdbSession, gdb_batch
from tests.support.polling import wait_for
from tests.support.qemu import free_port, qmp
from tests.support.require import requires
from tests.support.server import KvmgdbServer

pytestmark = requires("kvm", "qemu", "cc")

_PLUGGED = 1 << 32  # where QEMU's pc maps the first module, above the devices
_MIB = 1 << 20


@pytest.fixture
def monitor(tmp_path: Path) -> Path:
    return tmp_path / "qmp"


@pytest.fixture
def machine(monitor: Path) -> Iterator[KvmMachine]:
    """A QEMU that can be given more memory and vCPUs, with a monitor that only the
    test talks to."""
    arguments = [
        *("-m", "64M,slots=2,maxmem=1G", "-smp", "2,maxcpus=3"),
        *("-qmp", f"unix:{monitor},server=on,wait=off"),
    ]
    with qemu_guest("kvmgdb-changes", "chain", arguments) as pid:
        machine = KvmMachine.open(pid)
        yield machine
        machine.close()


def _resume(machine: KvmMachine) -> None:
    machine.resume({vcpu.index: Action.CONTINUE for vcpu in machine.vcpus})


def _at(info: MachineInfo, gpa: int) -> list[int]:
    return [region.size for region in info.regions if region.gpa == gpa]


def test_memory_that_is_plugged_in(machine: KvmMachine, monitor: Path) -> None:
    machine.stop()
    assert not _at(machine.info(), _PLUGGED)
    _resume(machine)
    qmp(
        monitor,
        "object-add",
        **{"qom-type": "memory-backend-ram", "id": "more", "size": 128 * _MIB},
    )
    qmp(monitor, "device_add", driver="pc-dimm", id="dimm", memdev="more")

    def seen() -> bool:
        machine.stop()
        found = _at(machine.info(), _PLUGGED) == [128 * _MIB]
        if not found:
            _resume(machine)
        return found

    wait_for("the new memory is seen at a stop", seen)
    assert any("changed the guest's memory" in note for note in machine.info().notes)
    assert machine.memory.read(_PLUGGED + 4096, 8) == bytes(8)
    machine.write_physical(_PLUGGED + 4096, b"plugged!")
    _resume(machine)
    shown = qmp(
        monitor,
        "human-monitor-command",
        **{"command-line": f"xp /8cb {_PLUGGED + 4096:#x}"},
    )
    assert "".join(re.findall(r"'(.)'", shown)) == "plugged!"


def _plug_in_vcpu(monitor: Path, name: str) -> None:
    slots = qmp(monitor, "query-hotpluggable-cpus")
    free = next(slot for slot in slots if "qom-path" not in slot)
    qmp(monitor, "device_add", driver=free["type"], id=name, **free["props"])


def test_a_vcpu_that_is_plugged_in(machine: KvmMachine, monitor: Path) -> None:
    """It is held from the next stop on, and the user is told so, once."""
    assert not machine.stop().detail
    _resume(machine)
    _plug_in_vcpu(monitor, "third")
    told: list[str] = []

    def seen() -> bool:
        told.append(machine.stop().detail)
        if not told[-1]:
            _resume(machine)
        return bool(told[-1])

    wait_for("the new vCPU is seen at a stop", seen)
    assert told[-1] == "the VMM has added vCPU 2"
    assert told[-1] in machine.info().notes
    assert [vcpu.index for vcpu in machine.vcpus] == [0, 1, 2]
    tid = int(machine.agent.shared.vcpu[2].tid)
    status = Path(f"/proc/{machine.agent.pid}/task/{tid}/status")
    assert f"TracerPid:\t{machine.agent.process.pid}\n" in status.read_text()
    # The guest has not started it: it stands at the reset vector.
    registers = machine.vcpus[2].read_registers(frozenset({Group.GENERAL}))
    assert registers.get("rip") == 0xFFF0
    assert machine.breakpoints is not None
    leaf = image("chain").symbols["chain_leaf"]
    for _ in range(3):
        machine.breakpoints.insert(BreakpointKind.SOFTWARE, leaf, 1)
        _resume(machine)
        hit = _wait_for_event(machine)
        assert hit.reason is StopReason.BREAKPOINT
        assert not hit.detail
        machine.breakpoints.remove(BreakpointKind.SOFTWARE, leaf, 1)
    machine.close()
    assert "TracerPid:\t0\n" in status.read_text()
    with closing(KvmMachine.open(machine.agent.pid)) as again:
        assert len(again.vcpus) == 3
        again.stop()


def _wait_for_event(machine: KvmMachine) -> StopEvent:
    events: list[StopEvent] = []

    def came() -> bool:
        event = machine.poll()
        if event is not None:
            events.append(event)
        return bool(events)

    wait_for("the machine stops by itself", came)
    return events[0]


def test_gdb_gets_a_vcpu_that_is_plugged_in(
    machine: KvmMachine, monitor: Path, gdb: GdbSession
) -> None:
    """As a thread, at the next stop; what holds it dies, and it is let go, too."""
    machine.close()
    leaf = image("chain").symbols["chain_leaf"]
    with KvmgdbServer(str(machine.agent.pid)) as server:
        gdb.connect(server.address)
        assert '"vCPU 2"' not in gdb.cli("info threads")
        gdb.resume()
        _plug_in_vcpu(monitor, "third")

        def listed() -> bool:
            gdb.interrupt()
            found = '"vCPU 2"' in gdb.cli("info threads")
            if not found:
                gdb.resume()
            return found

        wait_for("a third thread", listed)
        gdb.cli("thread 3")
        assert gdb.integer("$rip") == 0xFFF0
        gdb.cli("thread 1")
        gdb.cli(f"break *{leaf:#x}")
        assert gdb.run_to_stop()["reason"] == "breakpoint-hit"
        gdb.cli("delete")
        agents = subprocess.run(
            ["pgrep", "-f", f"kvmgdb-agent {machine.agent.pid} "],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        os.kill(int(agents[0]), signal.SIGKILL)
        tasks = Path(f"/proc/{machine.agent.pid}/task").glob("*/status")
        statuses = list(tasks)
        wait_for(
            "nobody traces any thread",
            lambda: all("TracerPid:\t0\n" in status.read_text() for status in statuses),
        )
    with closing(KvmMachine.open(machine.agent.pid)) as again:
        again.stop()
        assert len(again.vcpus) == 3


def test_a_debugger_in_the_stub_of_qemu(gdb: GdbSession, tmp_path: Path) -> None:
    """QEMU sets by itself what KVM stops the vCPUs for: not two of us at once."""
    address = tmp_path / "stub"
    arguments = ["-gdb", f"unix:{address},server=on,wait=off"]
    with qemu_guest("kvmgdb-stub", "chain", arguments) as pid:
        target = parse_target(str(pid))
        gdb.connect(str(address))
        with pytest.raises(TargetBusyError, match="a debugger is connected"):
            target.open()
        gdb.cli("detach")
        gdb.close()
        wait_for("GDB has left", lambda: not _has_debugger(pid))
        target.open().close()


def test_a_stub_that_qemu_opens_later(
    machine: KvmMachine, monitor: Path, gdb: GdbSession, tmp_path: Path
) -> None:
    """By its human monitor, before we come and while we are there."""
    pid, stub = machine.agent.pid, tmp_path / "later"
    line = f"gdbserver unix:{stub},server=on,wait=off"
    machine.close()
    ours = parse_target(str(pid)).open()
    assert isinstance(ours, KvmMachine)
    assert ours.breakpoints is not None
    leaf = image("chain").symbols["chain_leaf"]
    try:
        qmp(monitor, "human-monitor-command", **{"command-line": line})
        gdb.connect(str(stub))
        told: list[str] = []

        def seen() -> bool:
            told.append(ours.stop().detail)
            if not told[-1]:
                _resume(ours)
            return bool(told[-1])

        wait_for("the debugger is seen at a stop", seen)
        assert "a debugger is connected to the GDB stub of QEMU" in told[-1]
        with pytest.raises(BreakpointError, match="a debugger is connected"):
            ours.breakpoints.insert(BreakpointKind.SOFTWARE, leaf, 1)
        ours.close()
        with pytest.raises(TargetBusyError, match="a debugger is connected"):
            parse_target(str(pid)).open()
        gdb.cli("detach")
        gdb.close()
        wait_for("GDB has left", lambda: not has_client_of_later_socket(_qemu(pid)))
        parse_target(str(pid)).open().close()
    finally:
        ours.close()


def _qemu(pid: int) -> QemuProcess:
    qemu = read_qemu_process(pid)
    assert qemu is not None
    return qemu


def test_memory_that_is_unplugged(tmp_path: Path) -> None:
    """We hold its file; what it held is not shown once the module is gone."""
    eject = tmp_path / "qtest"
    arguments = [
        *("-m", "64M,slots=2,maxmem=1G", "-qmp", f"unix:{tmp_path}/2,server=on,wait=off"),
        *("-qtest", f"unix:{eject},server=on,wait=off", "-qtest-log", "none"),
        *("-object", "memory-backend-memfd,id=more,size=128M,share=on"),
        *("-device", "pc-dimm,id=dimm,memdev=more"),
    ]
    with (
        qemu_guest("kvmgdb-unplugged", "chain", arguments) as pid,
        closing(KvmMachine.open(pid)) as held,
        socket.socket(socket.AF_UNIX) as ports,
    ):
        held.stop()
        held.write_physical(_PLUGGED + 4096, b"plugged!")
        assert held.memory.read(_PLUGGED + 4096, 8) == b"plugged!"
        ports.connect(str(eject))
        # docs/specs/acpi_mem_hotplug: what a guest does that lets a module go.
        for line in (b"outl 0xa00 0\n", b"outb 0xa14 0x8\n"):
            ports.sendall(line)
            assert ports.recv(64) == b"OK\n"

        def gone() -> bool:
            try:
                held.memory.read(_PLUGGED + 4096, 8)
            except NoRamError:
                return True
            return False

        wait_for("the memory is gone", gone)
        assert not _at(held.info(), _PLUGGED)
        qmp(tmp_path / "2", "object-del", id="more")
        assert held.memory.read(0, 4) is not None
        _resume(held)


def _has_debugger(pid: int) -> bool:
    qemu = read_qemu_process(pid)
    return qemu is not None and busy_stub_address(qemu) is not None


def test_where_memory_lies_by_qemus_own_word(machine: KvmMachine) -> None:
    process = read_qemu_process(machine.agent.pid)
    assert process is not None
    told = qemu_regions(process)
    slots = machine.agent.regions(descriptors=False)
    assert len(slots) > 3
    for slot in slots:
        (region,) = [region for region in told if region.gpa <= slot.gpa < region.gpa + region.size]
        assert region.hva + (slot.gpa - region.gpa) == slot.hva
        assert slot.gpa + slot.size <= region.gpa + region.size


def test_an_ordinary_user_gets_qemus_word(gdb_path: str) -> None:
    """Nothing else names the firmware below 4 GiB, where a user may not read KVM's
    table."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    user = ("setpriv", "--reuid", str(NOBODY), "--clear-groups")
    reach = subprocess.run([*user, "sh", "-c", 'test -x "$0"', str(agent_path())], check=False)
    if reach.returncode != 0:
        pytest.skip(f"an ordinary user cannot reach {agent_path()}")
    arguments = ["-qmp", f"tcp:127.0.0.1:{free_port()},server=on,wait=off"]
    with (
        qemu_guest("kvmgdb-word", "chain", arguments, as_user=NOBODY) as pid,
        KvmgdbServer(str(pid), prefix=user) as server,
    ):
        commands = ("monitor info memory", "x/2i $pc", "detach")
        said = gdb_batch(gdb_path, f"target remote {server.address}", *commands).text
    assert re.search(r"^0x0*fffc0000-0x0*ffffffff +256 KiB  rom  by process  verified", said, re.M)
    assert "unverified" not in said
    assert "detached" in said


def test_reset_by_qemu(machine: KvmMachine, gdb: GdbSession) -> None:
    pid = machine.agent.pid
    machine.close()
    leaf = image("chain").symbols["chain_leaf"]
    with KvmgdbServer(str(pid)) as server:
        gdb.connect(server.address)
        gdb.cli(f"hbreak *{leaf:#x}")
        assert gdb.run_to_stop()["reason"] == "breakpoint-hit"
        gdb.cli("delete")
        assert "first instruction" in gdb.cli("monitor reset")
        gdb.cli("maintenance flush register-cache")
        # SDM volume 3, 10.1.4: the first instruction.
        assert gdb.integer("$cs_base") + gdb.integer("$rip") & 0xFFFFFFFF == 0xFFFFFFF0
        assert gdb.integer("$cr0") & 0x80000001 == 0
        gdb.cli(f"hbreak *{leaf:#x}")
        assert gdb.run_to_stop(seconds=60.0)["reason"] == "breakpoint-hit"
        assert gdb.integer("$cr0") & 0x80000001 == 0x80000001
        gdb.cli("delete")
        gdb.cli("detach")
