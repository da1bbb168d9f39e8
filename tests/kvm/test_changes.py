"""QEMU's monitor beside the agent: what it changes while a debugger is attached,
and what it adds."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kvmgdb.errors import TargetBusyError
from kvmgdb.machine.agent import agent_path
from kvmgdb.machine.interface import Action, MachineInfo
from kvmgdb.machine.kvm import KvmMachine
from kvmgdb.machine.kvm_qemu import qemu_regions
from kvmgdb.machine.qemu_process import busy_stub_address, read_qemu_process
from kvmgdb.machine.target import parse_target
from tests.agent.vm import NOBODY
from tests.kvm.guests import image, qemu_guest
from tests.support.gdb import GdbSession, gdb_batch
from tests.support.polling import wait_for
from tests.support.qemu import free_port, qmp
from tests.support.require import requires
from tests.support.server import KvmgdbServer

pytestmark = [requires("kvm", "qemu", "cc"), pytest.mark.timeout(120)]

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

    wait_for("the new memory is seen at a stop", seen, 20.0)
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


def test_a_vcpu_that_is_plugged_in(machine: KvmMachine, monitor: Path) -> None:
    """It is not held, and the user is told so at the next stop, once."""
    assert not machine.stop().detail
    _resume(machine)
    slots = qmp(monitor, "query-hotpluggable-cpus")
    (free,) = [slot for slot in slots if "qom-path" not in slot]
    qmp(monitor, "device_add", driver=free["type"], id="third", **free["props"])
    told: list[str] = []

    def seen() -> bool:
        told.append(machine.stop().detail)
        _resume(machine)
        return bool(told[-1])

    wait_for("the new vCPU is seen at a stop", seen, 20.0)
    assert "vCPU 2, which runs on: attach again" in told[-1]
    assert told[-1] in machine.info().notes
    time.sleep(0.2)
    assert not machine.stop().detail
    machine.close()
    with closing(KvmMachine.open(machine.agent.pid)) as again:
        assert len(again.vcpus) == 3
        again.stop()


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
        wait_for("GDB has left", lambda: not _has_debugger(pid), 20.0)
        target.open().close()


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
