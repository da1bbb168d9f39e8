"""What a VMM takes away while it is attached to: memory, and vCPUs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import closing

import pytest

from kvmgdb.errors import KvmgdbError, NoRamError
from kvmgdb.machine.interface import Action, Machine
from kvmgdb.machine.kvm import KvmMachine
from kvmgdb.machine.registers import Group
from tests.agent.vm import LOAD, Vm, wait_until
from tests.support.require import requires

pytestmark = requires("kvm", "cc")
Start = Callable[..., Vm]
_SPARE = 64 << 30  # guests/vmm.c


def _run(machine: Machine) -> None:
    machine.resume({vcpu.index: Action.CONTINUE for vcpu in machine.vcpus})


def _change_spare(vm: Vm) -> None:
    os.kill(vm.pid, signal.SIGUSR1)
    assert vm.process.stdout is not None
    assert vm.process.stdout.readline() in (b"there\n", b"away\n")


def _spare(machine: Machine) -> bytes | None:
    """What is read there; None where nothing is."""
    assert machine.memory is not None
    try:
        return machine.memory.read(_SPARE + 8, 4)
    except KvmgdbError:
        return None


def _wait_for_spare(machine: Machine, now: bytes | None) -> None:
    """It is looked at every tenth of a second."""

    def seen() -> bool:
        read = _spare(machine)
        assert read is None or read == now or now is None
        listed = _SPARE in {region.gpa for region in machine.info().regions}
        return read == now and listed == (now is not None)

    wait_until(seen, f"{now!r}")


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "running"])
def test_memory_that_goes_away_and_is_replaced(start: Start, stopped: bool) -> None:
    """Never what was there before, also at an address (HVA) that is used again."""
    vm = start(1, "spare", "eintr")
    with closing(KvmMachine.open(vm.pid)) as machine:
        machine.stop()
        assert _spare(machine) == b"aaaa"
        for now in (None, b"bbbb", None, b"cccc"):
            if not stopped:
                _run(machine)
            _change_spare(vm)
            _wait_for_spare(machine, now)
            assert machine.memory.read(LOAD, 4) == vm.read(LOAD, 4)
            if not stopped:
                machine.stop()
        assert any("changed the guest's memory" in note for note in machine.info().notes)
        _run(machine)
    vm.assert_progress()


def test_memory_that_goes_away_under_a_breakpoint(start: Start) -> None:
    vm = start(1, "spare", "eintr")
    with closing(KvmMachine.open(vm.pid)) as machine:
        machine.stop()
        hva = machine.hva_of(_SPARE)
        machine.agent.insert("SOFTWARE", _SPARE, gpa=_SPARE, hva=hva)
        _change_spare(vm)
        _run(machine)
        machine.stop()
        machine.agent.remove("SOFTWARE", _SPARE, gpa=_SPARE, hva=hva)
        _change_spare(vm)
        wait_until(lambda: _spare(machine) == b"bbbb", "the memory that took its place")
        assert machine.memory.read(_SPARE, 4) == b"bbbb"
    vm.assert_progress()


def test_a_balloon(start: Start) -> None:
    """Pages that the VMM gives back to the host read as the guest reads them: zeros."""
    vm = start(1, "spare", "eintr")
    with closing(KvmMachine.open(vm.pid)) as machine:
        machine.stop()
        assert _spare(machine) == b"aaaa"
        os.kill(vm.pid, signal.SIGHUP)
        wait_until(lambda: _spare(machine) == bytes(4), "the balloon")
        _run(machine)
    vm.assert_progress()


def test_a_vcpu_whose_thread_ends(start: Start) -> None:
    """As one that is unplugged: the others are debugged as before."""
    vm = start(2, "leave", "eintr")
    with closing(KvmMachine.open(vm.pid)) as machine:
        machine.stop()
        tid = int(machine.agent.shared.vcpu[1].tid)
        _run(machine)
        os.kill(vm.pid, signal.SIGUSR2)
        wait_until(lambda: tid not in vm.tids(), "the thread's end")
        machine.stop()
        assert [vcpu.state for vcpu in machine.vcpus] == ["running", "unplugged"]
        assert machine.vcpus[1].paging() is None
        assert machine.vcpus[0].read_registers(frozenset({Group.GENERAL})).get("rip")
        assert machine.poll() is None
        _run(machine)
        before = vm.counters()[0]
        wait_until(lambda: vm.counters()[0] > before, "progress of vCPU 0")
        machine.stop()
    before = vm.counters()[0]
    wait_until(lambda: vm.counters()[0] > before, "progress of vCPU 0")


def test_a_vcpu_that_another_thread_takes_over(start: Start) -> None:
    vm = start(2, "handover", "eintr")
    with closing(KvmMachine.open(vm.pid)) as machine:
        machine.stop()
        tid = int(machine.agent.shared.vcpu[1].tid)
        _run(machine)
        os.kill(vm.pid, signal.SIGUSR2)
        wait_until(lambda: tid not in vm.tids(), "the first thread's end")
        vm.assert_progress()

        def held() -> bool:
            machine.stop()
            if machine.vcpus[1].state == "unplugged":
                _run(machine)
                return False
            return True

        wait_until(held, "the second thread")
        assert int(machine.agent.shared.vcpu[1].tid) != tid
        before = vm.counters()
        assert machine.vcpus[1].read_registers(frozenset({Group.GENERAL})).get("rip")
        assert vm.counters() == before
        _run(machine)
        vm.assert_progress()
        machine.stop()
        vm.assert_history()
    vm.assert_progress()


def test_no_memory_at_all(start: Start) -> None:
    """A vCPU without a memory slot: nothing of the VMM's is taken for guest RAM."""
    vm = start(1, "slotless")
    with closing(KvmMachine.open(vm.pid)) as machine:
        machine.stop()
        assert machine.vcpus[0].read_registers(frozenset({Group.GENERAL})).get("rip") is not None
        assert machine.info().regions == ()
        with pytest.raises(NoRamError):
            machine.memory.read(LOAD, 4)
        _run(machine)
    assert vm.process.poll() is None
