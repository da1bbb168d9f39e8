"""One virtual machine, shared by all debuggers that are connected to the server.

The rule that keeps several debuggers honest: *the guest runs only while every
one of them wants it to*. A debugger at its prompt holds the guest still, so what
it shows stays true; the others see nothing of it but time. A stop is told to
those it belongs to: the owners of the breakpoint that was hit, the one who
stepped, the one who asked.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from kvmgdb.errors import BreakpointError, KvmgdbError, TargetGoneError, UnsupportedError
from kvmgdb.machine.awake import wakefulness
from kvmgdb.machine.interface import (
    Action,
    BreakpointKind,
    Machine,
    ResetAbility,
    StopEvent,
    StopReason,
)
from kvmgdb.machine.registers import Group
from kvmgdb.rsp.guest import Guest
from kvmgdb.rsp.module_watch import ModuleWatch

_HOUSEKEEPING = 0.25
# How long a step usually takes at most, and how long it takes on an idle host,
# in seconds.
_STEP_TIME = 0.002
_STEP_AWAKE = 0.0003
# How long an interrupt counts that crossed a stop reply on its way, in seconds.
# A debugger that goes on by itself (a false condition) does so within that; a
# user who saw the stop takes longer, and means no second one.
_CROSSING = 1.0
_GENERAL = frozenset({Group.GENERAL})

BreakpointKey = tuple[BreakpointKind, int, int]


@dataclass(frozen=True)
class ResumeRequest:
    """What a debugger wants when it lets go: an action for each vCPU that is to
    run, and a half-open range of instruction addresses per vCPU that it wants
    stepped through as one step."""

    actions: Mapping[int, Action]
    ranges: Mapping[int, tuple[int, int]]


class Debugger(Protocol):
    """What the machine tells a debugger that has let it run."""

    name: str
    number: int

    def close(self) -> None:
        """Drops the connection."""

    def stopped(self, event: StopEvent) -> None:
        """The guest stopped for this debugger; it holds the guest from now on."""

    def console(self, text: str) -> None:
        """A line for the user of a debugger that waits for the guest."""

    @property
    def follows_modules(self) -> bool:
        """Whether it wants to know of kernel modules that come and go."""

    @property
    def waits_for_kernel(self) -> bool:
        """Whether it has asked for the guest's kernel, and there was none."""

    def announce(self, vcpu: int) -> bool:
        """Tells it what has changed in the guest's kernel, if anything that it cares
        for; it holds the guest from then on."""


class _Member:
    """One attached debugger. ``request`` is None while it holds the guest."""

    def __init__(self, debugger: Debugger) -> None:
        self.debugger = debugger
        self.request: ResumeRequest | None = None
        self.interrupted = False
        self.crossed_at: float | None = None


class Debuggee:
    """The machine, its debuggers, and who wants what.

    ``open_machine`` attaches to the machine; it is called when the first
    debugger comes and no machine is open. ``log`` takes lines for the person
    who runs the server. ``end_machine`` ends a machine that was started for
    its debuggers; None for one that belongs to somebody else.
    """

    def __init__(
        self,
        open_machine: Callable[[], Machine],
        log: Callable[[str], None],
        machine: Machine | None = None,
        end_machine: Callable[[], None] | None = None,
    ) -> None:
        self.end_machine = end_machine
        self.request_quit: Callable[[], None] = self.close
        self._open_machine = open_machine
        self.log = log
        self._machine = machine
        self._members: dict[Debugger, _Member] = {}
        self._breakpoints: dict[BreakpointKey, set[object]] = {}
        self._lifted: set[BreakpointKey] = set()
        self._stepping_over: int | None = None
        self._stepping = False
        self._watched: tuple[int, ...] = ()
        self.guest = Guest()
        self._modules = ModuleWatch(self.guest)
        self._at_module_event: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.last_stop = StopEvent(StopReason.REQUEST)

    # ---- the machine

    @property
    def machine(self) -> Machine:
        """Raises TargetGoneError where there is none (any more)."""
        if self._machine is None:
            raise TargetGoneError("the virtual machine is gone")
        return self._machine

    @property
    def alive(self) -> bool:
        return self._machine is not None

    @property
    def debuggers(self) -> list[Debugger]:
        return list(self._members)

    def has(self, debugger: Debugger) -> bool:
        """Whether this debugger is attached to the machine."""
        return debugger in self._members

    def holds(self, debugger: Debugger) -> bool:
        """Whether this debugger is attached and keeps the guest stopped."""
        member = self._members.get(debugger)
        return member is not None and member.request is None

    def attach(self, debugger: Debugger) -> None:
        """Adds a debugger; the guest stands when this returns."""
        if self._machine is None:
            self._machine = self._open_machine()
        first = not self._members
        was_running = self._machine.running
        self._members[debugger] = _Member(debugger)
        try:
            event = self._machine.stop()
            self._restore_lifted()
        except KvmgdbError:
            del self._members[debugger]
            if first:
                self._close_machine()
            raise
        if first:
            self.last_stop = event
        elif was_running and event.reason is not StopReason.REQUEST:
            self._on_stop(event)
        self._watch()
        if self._timer is None:
            self._schedule_housekeeping()

    def detach(self, debugger: Debugger) -> None:
        """Removes a debugger and all it has set. After the last one the machine
        is given back as it was found."""
        member = self._members.pop(debugger, None)
        if member is None:
            return
        if not self._members:
            self._breakpoints.clear()
            self._close_machine()
            return
        if self._machine is not None:
            self._guarded(lambda: self.drop_breakpoints(debugger))
            self._guarded(self._unwatch_modules)
            self._guarded(lambda: self._let_run_if_wanted(None))

    def drop_breakpoints(self, debugger: Debugger) -> None:
        """Removes all that a debugger has set."""
        owned = [key for key, owners in self._breakpoints.items() if debugger in owners]
        if owned:
            self.machine.stop()
            self._restore_lifted()
        for key in owned:
            try:
                self.remove_breakpoint(debugger, *key)
            except BreakpointError as error:
                self.log(str(error))

    def watch_modules(self) -> None:
        """Notices from now on when kernel modules come and go, as long as a debugger
        follows them. The guest stands."""
        wanted = any(debugger.follows_modules for debugger in self._members)
        self._modules.plant(self, wanted)

    def _unwatch_modules(self) -> None:
        if self._modules.planted and not any(d.follows_modules for d in self._members):
            self.machine.stop()
            self._restore_lifted()
            self.watch_modules()

    def reset(self, resetting: ResetAbility) -> None:
        """Resets the machine, which stands: what runs next is another kernel. Raises
        MachineError where debuggers' breakpoints are in the way; our own are not."""
        self._modules.plant(self, False)
        try:
            resetting.reset()
        except KvmgdbError:
            self.watch_modules()
            raise
        self.guest.forget_kernel()

    def close(self) -> None:
        """Ends it all: the machine is given back, nobody is told."""
        self._members.clear()
        self._breakpoints.clear()
        self._close_machine()

    def _close_machine(self) -> None:
        self._watch(())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        machine, self._machine = self._machine, None
        self._lifted.clear()
        self._stepping_over = None
        self._modules.planted.clear()
        self.guest.forget_machine()
        if machine is not None:
            machine.close()

    # ---- breakpoints

    def insert_breakpoint(
        self, owner: object, kind: BreakpointKind, address: int, length: int
    ) -> None:
        """Raises BreakpointError, or UnsupportedError where the machine lacks the kind."""
        ability = self.machine.breakpoints
        if ability is None or kind not in ability.supported():
            raise UnsupportedError("this target has no breakpoints of that kind")
        key = (kind, address, length)
        owners = self._breakpoints.get(key)
        if owners is None:
            ability.insert(kind, address, length)
            owners = self._breakpoints[key] = set()
        owners.add(owner)

    def remove_breakpoint(
        self, owner: object, kind: BreakpointKind, address: int, length: int
    ) -> None:
        key = (kind, address, length)
        owners = self._breakpoints.get(key)
        if owners is None or owner not in owners:
            raise BreakpointError(f"there is no such breakpoint at {address:#x}")
        owners.discard(owner)
        if not owners:
            del self._breakpoints[key]
            self._lifted.discard(key)
            if self.machine.breakpoints is not None:
                self.machine.breakpoints.remove(kind, address, length)

    def breakpoint_kinds(self, debugger: Debugger, address: int | None) -> set[BreakpointKind]:
        """The kinds of breakpoint that a debugger has at an instruction address."""
        return {
            key[0]
            for key, owners in self._breakpoints.items()
            if key[1] == address and debugger in owners and not key[0].is_watchpoint
        }

    # ---- running

    def resume(self, debugger: Debugger, request: ResumeRequest) -> None:
        """Lets go of the guest. It runs once every other debugger has, too."""
        member = self._members.get(debugger)
        if member is None:
            raise TargetGoneError("the virtual machine is gone")
        member.request = request
        member.interrupted = False
        crossed_at, member.crossed_at = member.crossed_at, None
        if crossed_at is not None and time.monotonic() - crossed_at < _CROSSING:
            asyncio.get_running_loop().call_soon(self.interrupt, debugger)
        holders = [m.debugger.name for m in self._members.values() if m.request is None]
        if holders:
            debugger.console(
                f"kvmgdb: the guest stays stopped: {', '.join(holders)} holds it at a prompt\n"
            )
            return
        try:
            self._let_run_if_wanted(debugger)
        except TargetGoneError:
            # The machine knows more of its end than what failed here; and the
            # acknowledgement of this packet goes out before the stop reply.
            asyncio.get_running_loop().call_soon(self._poll)
        except KvmgdbError:
            member.request = None
            raise

    def settle(self) -> None:
        """Waits, after a vCPU was told to step, as long as a step usually takes:
        its end then needs no turn of the event loop."""
        now = start = time.perf_counter()
        while self._stepping and self._machine is not None and self._machine.running:
            left = start + _STEP_TIME - now
            if left <= 0:
                return
            awake = now - start < _STEP_AWAKE and wakefulness.pays
            ready, _, _ = select.select(self._machine.event_fds, (), (), 0.0 if awake else left)
            if ready:
                self._poll()
            now = wakefulness.look(now) if awake and not ready else time.perf_counter()

    def interrupt(self, debugger: Debugger) -> None:
        """Asks for a stop on behalf of a debugger that has let go. One whose stop
        is on its way to it already is stopped again should it go on at once."""
        member = self._members.get(debugger)
        if member is None:
            return
        if member.request is None:
            member.crossed_at = time.monotonic()
            return
        member.interrupted = True
        if self._machine is None or not self._machine.running:
            self._tell(member, StopEvent(StopReason.REQUEST, self.last_stop.vcpu))
        else:
            self._guarded(self._machine.request_stop)
            # A backend that stops at once has its event ready.
            self._poll()

    def _let_run_if_wanted(self, trigger: Debugger | None) -> None:
        members = list(self._members.values())
        if self._machine is None or self._machine.running or not members:
            return
        requests = [member.request for member in members if member.request is not None]
        if len(requests) < len(members):
            return
        wanted = set.intersection(*(set(request.actions) for request in requests))
        if not wanted:
            wanted = set.union(*(set(request.actions) for request in requests))
        actions = {
            index: Action.STEP
            if any(request.actions.get(index) is Action.STEP for request in requests)
            else Action.CONTINUE
            for index in sorted(wanted)
        }
        self._stepping = Action.STEP in actions.values()
        self._resume_past_foreign_breakpoints(actions, trigger)
        self._watch()

    def _resume_past_foreign_breakpoints(
        self, actions: dict[int, Action], trigger: Debugger | None
    ) -> None:
        """A debugger lifts its own breakpoint before it goes on from there. One
        that another debugger keeps at the same place must be lifted for it, or
        the guest would stand there for ever."""
        for index in actions:
            for key in self._foreign_breakpoints(index, trigger):
                self._lift(key)
            if self._lifted and actions[index] is Action.CONTINUE:
                self._stepping_over = index
                self.machine.resume({index: Action.STEP})
                return
        self.machine.resume(actions)

    def _foreign_breakpoints(self, vcpu: int, trigger: Debugger | None) -> list[BreakpointKey]:
        if len(self._members) < 2 and vcpu != self._at_module_event:
            return []
        rip = self.machine.vcpus[vcpu].read_registers(_GENERAL).get("rip")
        return [
            key
            for key, owners in self._breakpoints.items()
            if key[1] == rip and not key[0].is_watchpoint and trigger not in owners
        ]

    def _lift(self, key: BreakpointKey) -> None:
        if key not in self._lifted and self.machine.breakpoints is not None:
            self.machine.breakpoints.remove(*key)
            self._lifted.add(key)

    def _restore_lifted(self) -> None:
        self._stepping_over = None
        self._at_module_event = None
        while self._lifted:
            key = self._lifted.pop()
            if self.machine.breakpoints is not None:
                self.machine.breakpoints.insert(*key)

    # ---- events

    def _watch(self, descriptors: tuple[int, ...] | None = None) -> None:
        """Follows the machine's file descriptors in the event loop."""
        if descriptors is None:
            descriptors = self._machine.event_fds if self._machine is not None else ()
        if descriptors == self._watched:
            return
        loop = asyncio.get_running_loop()
        for descriptor in self._watched:
            loop.remove_reader(descriptor)
        for descriptor in descriptors:
            loop.add_reader(descriptor, self._poll)
        self._watched = descriptors

    def _schedule_housekeeping(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_HOUSEKEEPING, self._housekeeping)

    def _housekeeping(self) -> None:
        self._timer = None
        self._poll()
        if self.guest.is_due and not self._stepping and self._stepping_over is None:
            self._guarded(self._look_for_kernel)
        if self._machine is not None:
            self._schedule_housekeeping()

    def _poll(self) -> None:
        if self._machine is not None:
            self._guarded(self._poll_machine)

    def _poll_machine(self) -> None:
        event = self.machine.poll()
        if event is not None:
            self._on_stop(event)
        if self._machine is not None:
            self._watch()

    def _guarded(self, action: Callable[[], None]) -> None:
        """Runs something that nobody waits for: an error there is the machine's end
        or a line for the log, never a traceback in the event loop."""
        try:
            action()
        except TargetGoneError as error:
            self._on_stop(StopEvent(StopReason.EXITED, detail=str(error)))
        except KvmgdbError as error:
            self.log(f"error: {error}")

    def _on_stop(self, event: StopEvent) -> None:
        if event.reason is StopReason.EXITED:
            self._on_exit(event)
            return
        stepped_over = self._stepping_over
        self._restore_lifted()
        if stepped_over is not None and event.reason is StopReason.STEP:
            self._let_run_if_wanted(None)
            return
        self.last_stop = event
        if self._modules.take(self.machine, event):
            told = self._on_module_event(event)
        else:
            told = self._concerned(event)
        if event.reason is not StopReason.STEP:
            self._look_after_kernel()
        elif self._in_step_range(event, told):
            self._let_run_if_wanted(told[0].debugger)
            return
        for member in told:
            self._tell(member, event)
        for member in list(self._members.values()):
            if member.interrupted and member.request is not None:
                self._tell(member, StopEvent(StopReason.REQUEST, event.vcpu))
        self._let_run_if_wanted(None)

    def _on_module_event(self, event: StopEvent) -> list[_Member]:
        """A module comes or goes: the debuggers that follow them read the list before
        the guest goes on. Returns those that have a breakpoint there, too."""
        self._at_module_event = event.vcpu
        owners = []
        for member in self._members.values():
            if member.request is None:
                continue
            if self.breakpoint_kinds(member.debugger, event.address):
                owners.append(member)
            elif member.debugger.announce(event.vcpu):
                member.request = None
        return owners

    def _look_after_kernel(self) -> None:
        """The guest may have booted another kernel, or its first one, since."""
        before = self.guest.kernel
        follows = any(debugger.follows_modules for debugger in self._members)
        self.guest.look_again(self.machine, follows and not self._modules.planted)
        if self.guest.kernel is not before and follows:
            self.watch_modules()

    def _look_for_kernel(self) -> None:
        """Stops a guest that is booting for a moment: once it has a kernel, debuggers
        learn of it, and their breakpoints by name can hit."""
        waiting = [m for m in self._members.values() if m.debugger.waits_for_kernel]
        if self._machine is None or not self._machine.running or not waiting:
            return
        event = self._machine.stop()
        if event.reason is StopReason.REQUEST:
            self._look_after_kernel()
            for member in waiting:
                if member.request is not None and member.debugger.announce(event.vcpu):
                    member.request = None
        self._on_stop(event)

    def _on_exit(self, event: StopEvent) -> None:
        self.log(f"the virtual machine is gone: {event.detail}")
        waiting = [member for member in self._members.values() if member.request is not None]
        self._members.clear()
        self._breakpoints.clear()
        self._close_machine()
        self.last_stop = event
        for member in waiting:
            self._tell(member, event)

    def _tell(self, member: _Member, event: StopEvent) -> None:
        member.request = None
        if member.interrupted and event.reason is not StopReason.REQUEST:
            # It stopped for another reason just before: the interrupt is still owed.
            member.crossed_at = time.monotonic()
        member.interrupted = False
        member.debugger.stopped(event)

    def _concerned(self, event: StopEvent) -> list[_Member]:
        """The debuggers that a stop is for. One that nobody owns is for all."""
        waiting = [m for m in self._members.values() if m.request is not None]
        if event.reason is StopReason.REQUEST:
            return []
        owners: list[_Member] = []
        if event.reason in (StopReason.BREAKPOINT, StopReason.HARDWARE_BREAKPOINT):
            owners = [m for m in waiting if self.breakpoint_kinds(m.debugger, event.address)]
        elif event.reason is StopReason.WATCHPOINT:
            owners = [m for m in waiting if self._watches(m.debugger, event.address)]
        elif event.reason is StopReason.STEP:
            owners = [
                m
                for m in waiting
                if m.request is not None and m.request.actions.get(event.vcpu) is Action.STEP
            ]
        return owners or waiting

    def _watches(self, debugger: Debugger, address: int | None) -> bool:
        return address is not None and any(
            key[0].is_watchpoint and key[1] <= address < key[1] + key[2] and debugger in owners
            for key, owners in self._breakpoints.items()
        )

    def _in_step_range(self, event: StopEvent, told: list[_Member]) -> bool:
        """Whether a step ended inside the range that its only owner wants to leave."""
        if len(told) != 1 or told[0].request is None or told[0].interrupted:
            return False
        limits = told[0].request.ranges.get(event.vcpu)
        if limits is None:
            return False
        rip = self.machine.vcpus[event.vcpu].read_registers(_GENERAL).get("rip")
        if rip is None or self.breakpoint_kinds(told[0].debugger, rip):
            return False
        return limits[0] <= rip < limits[1]
