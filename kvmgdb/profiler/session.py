"""One machine that is being profiled: its samples become those of a recording."""

from __future__ import annotations

import math
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from kvmgdb.errors import (
    KvmgdbError,
    MachineError,
    NoKernelError,
    TargetGoneError,
    UnsupportedError,
)
from kvmgdb.linux.attach import find_kernel, stopped
from kvmgdb.linux.boot import Boot
from kvmgdb.linux.identity import identify
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.native import UnwindEnd
from kvmgdb.machine.interface import Action, Machine
from kvmgdb.machine.native import Paging
from kvmgdb.machine.sampling import SampleStream, SamplingCounters, SamplingPlan
from kvmgdb.profiler.file_code import FileCode, unnamed
from kvmgdb.profiler.kernel_code import KernelCode
from kvmgdb.profiler.native import (
    EXITED,
    HALTED,
    KERNEL_SPACE,
    RUNNING,
    Place,
    Row,
    StackMaker,
    task_identity,
)
from kvmgdb.profiler.plan import plan_for, plan_without_kernel
from kvmgdb.profiler.recording import Frame, FrameKind, Recording, State
from kvmgdb.profiler.stop_sampling import StopSampling
from kvmgdb.profiler.user_code import NamedCode, UserCode

MAX_RATE = 20000.0
_KERNEL_HALF = 1 << 63
_EXIT = Frame("[VM exit]", "", FrameKind.MARK, 0)
# How often it is looked at whether the kernel is still the one that was found.
_CHECK_SECONDS = 0.5
# Where no vCPU runs, the machine is stopped for a look, so often.
_LOOK_SECONDS = 2.0
# A guest of the guest's, firmware that the kernel calls: only what is seen several times
# in a row counts.
_STRANGE = 3
_MOST_SEEN = 32


class RebootedError(TargetGoneError):
    """The guest has started again: what was known of its kernel is void."""


@dataclass(frozen=True)
class Wanted:
    """What to record: ``kernel`` and ``user`` frames; only samples of the task of
    this name, PID or TID, and of this vCPU. ``symbols`` is an ELF file for code
    that nothing else names."""

    kernel: bool = True
    user: bool = True
    task: str | None = None
    vcpu: int | None = None
    symbols: Path | None = None


class Session:
    """Samples ``machine`` into ``recording`` from :meth:`begin` until :meth:`close`.

    The constructor finds and prepares everything; the guest is stopped for that once,
    for as long as registers are read. Raises what attaching to a kernel may raise, but
    a guest that is not Linux is sampled too: addresses, by frame pointers.
    """

    stream: SampleStream
    begin_ns: int

    def __init__(
        self,
        machine: Machine,
        recording: Recording,
        name: str,
        rate: float,
        wanted: Wanted,
    ) -> None:
        self.machine = machine
        self.name = name
        self.recording = recording
        self.states: Counter[int] = Counter()
        self.broken: Counter[str] = Counter()
        self.skipped = 0
        self.kernel: Kernel | None = None
        self._wanted = wanted
        self._file = None if wanted.symbols is None else FileCode(wanted.symbols)
        self._kernel_code: KernelCode | None = None
        self._user_code: UserCode | None = None
        self._stacks: dict[int, int] = {}
        self._tasks: dict[int, tuple[int, bool]] = {}
        self._checked = self._looked = time.monotonic()
        self._strange = 0
        self._resets = machine.resets
        # Page tables that vCPUs used since the last check, with the time of the sample.
        self._seen: dict[int, int] = {}
        self._saw_halted = False
        self._sound_ns = self._broken_since = 0
        self._rebooted = False
        self._find_kernel()
        self._vm = recording.vm(name, self._banner())
        self._rate = rate
        self._plan = self._make_plan()

    # -- preparing

    def _find_kernel(self) -> None:
        tables = None
        try:
            self.kernel = kernel = find_kernel(self.machine)
            self._kernel_code = KernelCode(kernel)
        except (NoKernelError, UnsupportedError) as error:
            self.recording.remark(f"no Linux kernel was found: {error}")
        else:
            tables = self._kernel_code.tables
            for problem in self._kernel_code.problems:
                self.recording.remark(problem)
            self._user_code = UserCode(kernel)
            self._boot = Boot(kernel)
        exited = self.recording.frame(*_EXIT)
        self._maker = StackMaker(tables, exited, self._wanted.kernel, self._wanted.user)

    def _banner(self) -> str:
        banner = None if self.kernel is None else identify(self.kernel).banner
        return banner or ""

    def _make_plan(self) -> SamplingPlan:
        if self.machine.memory is None:
            raise UnsupportedError(
                "this target cannot be profiled: it does not give access to guest-physical memory"
            )
        if self.kernel is None:
            return plan_without_kernel()
        with stopped(self.machine):
            return plan_for(self.machine, self.kernel, self._wanted.user)

    # -- recording

    def begin(self, begin_ns: int | None = None) -> None:
        """``begin_ns`` is when the recording of which this is a part began
        (time.monotonic_ns), or None for now."""
        if self.machine.stands_by_attaching:
            self.machine.resume({vcpu.index: Action.CONTINUE for vcpu in self.machine.vcpus})
        self.stream = self._start()
        self.begin_ns = time.monotonic_ns() if begin_ns is None else begin_ns

    def _start(self) -> SampleStream:
        ability = self.machine.sampling
        if ability is not None:
            try:
                return ability.start(self._rate, self._plan)
            except UnsupportedError as error:
                self.recording.remark(f"sampled by stopping the machine: {error}")
        return StopSampling(self.machine, self._rate, self._plan)

    def wait(self, seconds: float) -> None:
        """Lets that much time pass; samples arrive meanwhile. Raises TargetGoneError
        when the machine ends, and RebootedError when the guest starts again."""
        self.stream.wait(seconds)
        self._check_kernel()

    def drain(self, seconds: float = math.inf) -> bool:
        """Takes what has arrived, for so long at most. Returns whether some is left."""
        end = time.monotonic() + seconds
        while len(records := self.stream.peek()):
            if time.monotonic() > end:
                return True
            taken = self._maker.take(records)
            for row in taken.rows:
                self._add(row)
            self.stream.advance(taken.consumed)
            with self._readable() if taken.places else nullcontext():
                for place in dict.fromkeys(taken.places):
                    if place.space == KERNEL_SPACE:
                        self._renew(place.address)
                    self._name(place)
        return False

    def _renew(self, address: int | None = None) -> None:
        """Learns of modules that have been loaded since, one of which may have the code
        at ``address``."""
        code = self._kernel_code
        if code is None or (address is not None and address in code.text):
            return
        if code.renew(address):
            self._maker.renew(code.tables, code.text)

    def close(self) -> SamplingCounters:
        """Ends sampling, and takes what is left."""
        self.stream.close()
        self.drain()
        if self._rebooted:
            self._forget_later_boot()
        return self.stream.counters()

    def _add(self, row: Row) -> None:
        self.states[row.state] += 1
        time_ns = max(0, row.time_ns - self.begin_ns)
        self._note(row, time_ns)
        task, wanted = self._task(row.task)
        if not wanted or (self._wanted.vcpu is not None and row.vcpu != self._wanted.vcpu):
            self.skipped += 1
            return
        recording = self.recording
        if row.broken:
            recording.counters.broken += 1
            self._broken_since += 1
            self.broken[f"{UnwindEnd(row.end).name.lower()} at {row.address:#x}"] += 1
        if row.state == HALTED:
            state, stack = State.HALTED, 0
        elif row.state in (RUNNING, EXITED):
            state, stack = State.RUNNING, self._stack(row.stack)
        else:
            return
        recording.add(time_ns, self._vm, row.vcpu, task, stack, state, row.held_ns)

    def _stack(self, number: int) -> int:
        stack = self._stacks.get(number)
        if stack is None:
            stack = self._stacks[number] = self.recording.stack(self._maker.stack(number))
        return stack

    def _task(self, number: int) -> tuple[int, bool]:
        """The recording's number for a task, and whether it is to be recorded."""
        known = self._tasks.get(number)
        if known is None:
            raw = self._maker.task(number)
            tid, pid, name, _ = task_identity(raw.words)
            wanted = self._wanted.task in (None, name, str(pid), str(tid))
            task = self.recording.task(pid, tid, name if raw.address else "")
            known = self._tasks[number] = (task, wanted)
        return known

    # -- names

    def _readable(self) -> AbstractContextManager[None]:
        """While the guest's memory can be read, which holds names."""
        machine = self.machine
        return nullcontext() if machine.reads_while_running else stopped(machine)

    def _name(self, place: Place) -> None:
        try:
            named = self._named(place)
            if place.address not in named.code:
                named = unnamed(place.address)
        except TargetGoneError:
            raise
        except KvmgdbError:  # guest memory holds nonsense there: damaged, hostile, or reset
            named = unnamed(place.address)
        frame = self.recording.frame(*named.frame)
        self._maker.name(place, named.code, frame, named.is_code)

    def _named(self, place: Place) -> NamedCode:
        if self._file is not None and (found := self._file.name(place.address)) is not None:
            return found
        if place.space == KERNEL_SPACE and self._kernel_code is not None:
            return self._kernel_code.name(place.address)
        if place.space != KERNEL_SPACE and self._user_code is not None:
            _, process, _, mm = task_identity(self._maker.task(place.space - 1).words)
            return self._user_code.name(process, mm, place.address)
        return unnamed(place.address)

    @property
    def incomplete_programs(self) -> list[str]:
        """Files of the guest whose full symbol table was not in its memory."""
        return sorted(self._user_code.incomplete) if self._user_code is not None else []

    # -- is it still the same guest?

    def _note(self, row: Row, time_ns: int) -> None:
        """Keeps of a sample what the next check needs."""
        if row.state == RUNNING:
            self._seen.pop(row.cr3, None)
            self._seen[row.cr3] = time_ns
            if len(self._seen) > _MOST_SEEN:
                del self._seen[next(iter(self._seen))]
        self._saw_halted |= row.state == HALTED

    def _check_kernel(self) -> None:
        """Whether the kernel that was found runs still, as of the page tables that were
        in use since the last check, or of those in which all vCPUs are idle."""
        now = time.monotonic()
        if self.kernel is None or now - self._checked < _CHECK_SECONDS:
            return
        self._checked = now
        with self._readable():
            self._renew()
        if self.machine.resets != self._resets:
            self._end_of_boot()
        if self._seen:
            self._looked = now
            sound_ns = self._newest_sound(self.kernel.paging)
        elif self._saw_halted and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            sound_ns = self._look()
        else:
            return
        self._seen.clear()
        self._saw_halted = False
        if sound_ns is None:
            self._strange += 1
            if self._strange >= _STRANGE:
                self._end_of_boot()
            return
        self._strange = self._broken_since = 0
        self._sound_ns = sound_ns

    def _newest_sound(self, paging: Paging) -> int | None:
        """The time of the newest sample whose page tables have our kernel."""
        with self._readable():
            for cr3, time_ns in reversed(self._seen.items()):
                if self._boot.goes_on([replace(paging, cr3=cr3)]):
                    return time_ns
        return None

    def _look(self) -> int | None:
        """Stops the machine for a look at its page tables: nothing runs that could be
        sampled. Gives the time if they have our kernel."""
        now = time.monotonic_ns() - self.begin_ns
        try:
            with stopped(self.machine):
                pagings = [vcpu.paging() for vcpu in self.machine.vcpus]
                known = [paging for paging in pagings if paging is not None]
                return now if self._boot.goes_on(known) else None
        except TargetGoneError:
            raise
        except MachineError:  # its host is busy, or it was paused: nothing is known
            return self._sound_ns

    def _end_of_boot(self) -> None:
        self._rebooted = True
        raise RebootedError("the guest has started again")

    def _forget_later_boot(self) -> None:
        """Samples since it was last seen that the old kernel runs may be of the new one,
        for which our names are wrong."""
        forgotten = self.recording.forget(self._vm, self._sound_ns)
        self.recording.counters.broken -= self._broken_since
        if forgotten:
            self.recording.remark(
                f"{forgotten} samples of {self.name} were left out: they may be from after "
                "it had started again"
            )
