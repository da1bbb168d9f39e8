"""What a VMM changes while a debugger is attached: memory and vCPUs that are
plugged in, through QEMU's own monitor."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kvmgdb.errors import TargetBusyError
from kvmgdb.machine.interface import Action, MachineInfo
from kvmgdb.machine.kvm import KvmMachine
from kvmgdb.machine.qemu_process import has_debugger, read_qemu_process
from kvmgdb.machine.target import parse_target
from tests.kvm.guests import qemu_guest
from tests.support.gdb import GdbSession
from tests.support.polling import wait_for
from tests.support.qemu import qmp
from tests.support.require import requires

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
    return qemu is not None and has_debugger(qemu)
