"""Breakpoints, watchpoints and steps, and exits that the VMM must not see.

vmm.c ends at the first debug exit or -EINTR it sees, so that a VMM which lives
has seen none.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Callable

import pytest

from kvmgdb.errors import NoFreeBreakpointError
from kvmgdb.machine.agent import Agent
from tests.agent.footprint import Footprint
from tests.agent.vm import COMPUTE, INT3, Vm, wait_until
from tests.support.require import requires

pytestmark = requires("kvm", "cc")
Start = Callable[..., Vm]
SAW_OTHER = 5  # vmm.c: an exit that it cannot handle


@pytest.fixture(
    params=[
        pytest.param(("plain", (), 1), id="plain-1"),
        pytest.param(("plain", (), 2), id="plain-2"),
        pytest.param(("qemu", (), 2), id="qemu-2", marks=requires("qemu")),
    ]
)
def vm(request: pytest.FixtureRequest, start: Start, start_qemu: Start) -> Vm:
    kind, options, vcpus = request.param
    return (start if kind == "plain" else start_qemu)(vcpus, *options)


def software(agent: Agent, vm: Vm, symbol: str, *, remove: bool = False) -> int:
    place = vm.symbols[symbol]
    (agent.remove if remove else agent.insert)("SOFTWARE", place, gpa=place, hva=vm.hva + place)
    return place


def wait_event(agent: Agent, seconds: float = 60.0) -> int:
    """The vCPU that stopped by itself."""
    readable = select.select([agent.event_fd], [], [], seconds)[0]
    assert readable, "no event"
    agent.clear_event()
    assert not agent.shared.gone
    return int(agent.shared.focus)


def reason(agent: Agent, vcpu: int) -> str:
    number = agent.shared.vcpu[vcpu].reason
    names = ("NONE", "REQUEST", "STEP", "BREAKPOINT", "HARDWARE", "WATCH", "ERROR")
    return next(name for name in names if agent.constant(f"REASON_{name}") == number)


def test_software_breakpoint_is_hit_again_and_again(vm: Vm) -> None:
    before = Footprint.of(vm)
    with Agent(vm.pid) as agent:
        assert agent.attach().perf
        agent.stop()
        place = software(agent, vm, "inner_store")
        assert vm.read(place, 1) == b"\xcc"
        for _ in range(30):
            agent.resume()
            vcpu = wait_event(agent)
            assert reason(agent, vcpu) == "BREAKPOINT"
            registers = agent.registers(vcpu)
            assert registers["rip"] == agent.shared.vcpu[vcpu].address == place
            # inner_add has just made the next count, inner_store not yet stored it
            assert registers["rax"] == vm.quad("counter", vcpu) + 1
        software(agent, vm, "inner_store", remove=True)
        agent.resume()
        vm.assert_progress()
        agent.stop()
        vm.assert_history()
        agent.detach()
    vm.assert_progress()
    assert Footprint.of(vm) == before


@pytest.mark.parametrize("kind", ["SOFTWARE", "HARDWARE"])
def test_a_vcpu_that_stands_at_a_new_breakpoint_hits_it(vm: Vm, kind: str) -> None:
    """It has come there without a hit; one that has been told is passed."""
    with Agent(vm.pid) as agent:
        agent.attach()
        for _ in range(5):
            agent.stop()
            place = agent.registers(0)["rip"]
            where = (place, vm.hva + place) if kind == "SOFTWARE" else (0, 0)
            agent.insert(kind, place, 1, *where)
            count = vm.quad("counter", 0)
            agent.resume()
            assert wait_event(agent) == 0
            name = "BREAKPOINT" if kind == "SOFTWARE" else kind
            assert reason(agent, 0) == name
            assert agent.registers(0)["rip"] == agent.shared.vcpu[0].address == place
            assert vm.quad("counter", 0) == count
            agent.remove(kind, place, 1, *where)
            agent.resume()
            vm.assert_progress()
    vm.assert_progress()


def test_hardware_breakpoint(vm: Vm) -> None:
    place = vm.symbols["inner_store"]
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        agent.insert("HARDWARE", place)
        for _ in range(10):
            agent.resume()
            vcpu = wait_event(agent)
            assert reason(agent, vcpu) == "HARDWARE"
            assert agent.registers(vcpu)["rip"] == place
        agent.remove("HARDWARE", place)
        agent.resume()
        vm.assert_progress()
        agent.stop()
        vm.assert_history()


def test_there_are_four_hardware_breakpoints(start: Start) -> None:
    vm = start(1)
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        names = ("outer", "middle", "inner", "inner_store")
        for name in names:
            agent.insert("HARDWARE", vm.symbols[name])
        with pytest.raises(NoFreeBreakpointError):
            agent.insert("HARDWARE", vm.symbols["main_loop"])
        places = set()
        for _ in range(8):
            agent.resume()
            assert wait_event(agent) == 0
            assert reason(agent, 0) == "HARDWARE"
            places.add(agent.registers(0)["rip"])
        assert places == {vm.symbols[name] for name in names}
        agent.detach()
    vm.assert_progress()


def test_watchpoint(vm: Vm) -> None:
    """By debug registers, or where KVM interprets guest code by stepping."""
    cell = vm.symbols["counter"]
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        agent.insert("WRITE", cell, 8)
        for _ in range(5):
            agent.resume()
            vcpu = wait_event(agent)
            assert vcpu == 0  # the others count elsewhere
            assert reason(agent, vcpu) == "WATCH"
            assert agent.shared.vcpu[vcpu].address == cell
            # the instruction after the store
            assert vm.symbols["inner_store"] < agent.registers(0)["rip"] < vm.symbols["inner_end"]
            assert agent.registers(0)["rax"] == vm.quad("counter")
        agent.remove("WRITE", cell, 8)
        agent.resume()
        vm.assert_progress()
        agent.stop()
        vm.assert_history()
        agent.detach()
    vm.assert_progress()


def test_watchpoint_and_breakpoint_together(start: Start) -> None:
    vm = start(1)
    cell = vm.symbols["counter"]
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        agent.insert("WRITE", cell, 8)
        place = software(agent, vm, "inner_add")
        seen = []
        for _ in range(6):
            agent.resume()
            wait_event(agent)
            seen.append(reason(agent, 0))
            assert seen[-1] == "WATCH" or agent.registers(0)["rip"] == place
            agent.stop()  # a stop of a stopped machine changes nothing
        assert seen in (["BREAKPOINT", "WATCH"] * 3, ["WATCH", "BREAKPOINT"] * 3)
        agent.detach()
    vm.assert_progress()


@pytest.mark.parametrize("action", ["STEP", "STEP_BLOCK_IRQ"])
def test_single_steps_follow_the_code(vm: Vm, action: str) -> None:
    """The same path as that of an independent reading of the code: each of the
    instructions of the loop once a round."""
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        software(agent, vm, "main_loop")
        agent.resume()
        vcpu = wait_event(agent)
        software(agent, vm, "main_loop", remove=True)
        count = vm.quad("counter", vcpu)
        path = []
        for _ in range(200):
            agent.resume({vcpu: action})
            assert wait_event(agent) == vcpu
            assert reason(agent, vcpu) == "STEP"
            path.append(agent.registers(vcpu)["rip"])
            if path[-1] == vm.symbols["main_loop"]:
                break
        assert path[0] == vm.symbols["outer"]
        for name in ("middle", "inner", "inner_add", "inner_store", "inner_end"):
            assert path.count(vm.symbols[name]) == 1
        assert vm.quad("counter", vcpu) == count + 1
        agent.resume()
        vm.assert_progress()


def test_step_from_a_breakpoint_executes_the_instruction_under_it(vm: Vm) -> None:
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        place = software(agent, vm, "inner_store")
        agent.resume()
        vcpu = wait_event(agent)
        before = vm.quad("counter", vcpu)
        agent.resume({vcpu: "STEP"})
        assert wait_event(agent) == vcpu
        assert reason(agent, vcpu) == "STEP"
        assert vm.quad("counter", vcpu) == before + 1
        assert vm.read(place, 1) == b"\xcc"
        agent.detach()
    vm.assert_progress()


def test_each_vcpus_hit_is_shown(start: Start) -> None:
    vm = start(2)
    seen = set()
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        software(agent, vm, "inner_store")
        for _ in range(60):
            agent.resume()
            seen.add(wait_event(agent))
        agent.detach()
    assert seen == {0, 1}
    vm.assert_progress()


def test_stop_while_breakpoints_are_armed(vm: Vm) -> None:
    """Stops, hits and steps at random: the guest never loses a step."""
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        software(agent, vm, "inner_add")
        agent.insert("HARDWARE", vm.symbols["middle"])
        for _ in range(60):
            agent.resume()
            agent.stop()
            agent.clear_event()
        agent.detach()
    vm.assert_progress()
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        vm.assert_history()


def test_registers_can_be_written(vm: Vm) -> None:
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        software(agent, vm, "inner_store")
        agent.resume()
        vcpu = wait_event(agent)
        values = list(struct.unpack("<18Q", agent.ioctl(vcpu, "GET_REGS", bytes(144))))
        values[0] = 1 << 40  # rax: what inner_store writes to the counter
        agent.ioctl(vcpu, "SET_REGS", struct.pack("<18Q", *values))
        assert agent.registers(vcpu)["rax"] == 1 << 40
        agent.resume({vcpu: "STEP"})
        wait_event(agent)
        assert vm.quad("counter", vcpu) == 1 << 40
        agent.detach()
    vm.assert_progress()


def test_an_int3_of_the_guests_own_reaches_it(start: Start) -> None:
    """Where KVM interprets guest code it cannot execute one: then the failure is
    shown, and the VMM gets it, as without us."""
    vm = start(1)
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        software(agent, vm, "do_triple_fault")  # never executed
        vm.set_mode(INT3)
        agent.resume()
        wait_until(
            lambda: vm.quad("breakpoints_taken") > 10 or agent.shared.focus == 0,
            "the guest's int3",
        )
        if vm.quad("breakpoints_taken"):
            vm.set_mode(COMPUTE)
            vm.assert_progress()
            return
        assert reason(agent, 0) == "ERROR"
        assert agent.registers(0)["rip"] == vm.symbols["own_int3"]
        agent.resume()
        assert vm.process.wait(10.0) == SAW_OTHER
