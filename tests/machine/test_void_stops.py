"""Stops for which QEMU has no reason are not told: a step that executed nothing, and
a breakpoint that was hit before the guest was resumed and is gone since."""

from __future__ import annotations

import select
import time

from kvmgdb.machine.interface import Action, BreakpointKind, Machine, StopEvent, StopReason
from kvmgdb.machine.registers import Group
from kvmgdb.machine.target import parse_target
from tests.support.served import WatchedGuest

ROUNDS = 400
STOP_SECONDS = 30.0


def run_to_stop(machine: Machine, actions: dict[int, Action]) -> StopEvent:
    machine.resume(actions)
    deadline = time.monotonic() + STOP_SECONDS
    while (event := machine.poll()) is None:
        left = deadline - time.monotonic()
        assert left > 0
        select.select(machine.event_fds, [], [], left)
    return event


def test_each_step_executes_an_instruction(guest: WatchedGuest) -> None:
    """From a function that the vCPUs call all the time, so that both come to the
    breakpoint, and have interrupts to take."""
    hot = guest.symbol("__x64_sys_getppid")
    machine = parse_target(str(guest.pid)).open()
    try:
        machine.stop()
        breakpoints = machine.breakpoints
        assert breakpoints is not None
        everyone = {vcpu.index: Action.CONTINUE for vcpu in machine.vcpus}
        for _ in range(ROUNDS):
            breakpoints.insert(BreakpointKind.HARDWARE, hot, 1)
            hit = run_to_stop(machine, everyone)
            assert (hit.reason, hit.address) == (StopReason.HARDWARE_BREAKPOINT, hot)
            breakpoints.remove(BreakpointKind.HARDWARE, hot, 1)
            step = run_to_stop(machine, everyone | {hit.vcpu: Action.STEP})
            assert (step.reason, step.vcpu) == (StopReason.STEP, hit.vcpu)
            registers = machine.vcpus[step.vcpu].read_registers(frozenset({Group.GENERAL}))
            assert registers.get("rip") != hot
    finally:
        machine.close()
    guest.wait_given_back()
