"""A snapshot of the tasks that do not run: where each of them waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from kvmgdb.errors import KvmgdbError
from kvmgdb.linux.attach import find_kernel, stopped
from kvmgdb.linux.stacks import NamedFrame, Unwinder
from kvmgdb.linux.tasks import list_tasks
from kvmgdb.machine.interface import Machine
from kvmgdb.profiler.recording import NO_VCPU, FrameKind, Recording, State
from kvmgdb.profiler.user_code import NamedCode, UserCode

_KERNEL_HALF = 1 << 63
# The letters of /proc/PID/stat. One that is ready to run waits for a CPU.
_STATES = {
    "R": State.RUNNING,
    "S": State.INTERRUPTIBLE,
    "D": State.UNINTERRUPTIBLE,
    "T": State.STOPPED,
    "t": State.TRACED,
    "P": State.PARKED,
    "I": State.IDLE_TASK,
}


def record_sleeping(
    machine: Machine, recording: Recording, name: str, task: str | None = None
) -> None:
    """Adds the stack of each task that no CPU runs, or only of those of this name,
    PID or TID. The guest is stopped meanwhile. Raises what finding a kernel does."""
    kernel = find_kernel(machine)
    unwinder = Unwinder(kernel)
    for problem in unwinder.problems:
        recording.remark(problem)
    user_code = UserCode(kernel)
    vm = recording.vm(name)
    begin = time.monotonic_ns()
    with stopped(machine):
        tasks = list_tasks(kernel)
        for found in tasks:
            state = _STATES.get(found.state)
            wanted = task in (None, found.comm, str(found.pid), str(found.tid))
            if found.running or state is None or not wanted:
                continue
            try:
                trace = unwinder.of_sleeping(found.object)
            except KvmgdbError:
                recording.counters.errors += 1
                continue
            recording.counters.broken += trace.broken is not None
            mm = found.object.member("mm").integer()
            user = partial(user_code.name, found.pid, mm)
            frames = [_number(recording, user, frame) for frame in reversed(trace.frames)]
            number = recording.task(found.pid, found.tid, found.comm)
            stack = recording.stack(frames)
            recording.add(0, vm, NO_VCPU, number, stack, state, 0)
    if tasks.damage is not None:
        recording.remark(f"these are not all tasks: {tasks.damage}")
    recording.duration_ns = time.monotonic_ns() - begin


def _number(recording: Recording, user: Callable[[int], NamedCode], frame: NamedFrame) -> int:
    ip = frame.frame.ip
    if frame.symbol is None:
        if ip < _KERNEL_HALF:
            return recording.frame(*user(ip).frame)
        return recording.frame("", "", FrameKind.UNKNOWN, ip)
    kind = FrameKind.MODULE if frame.module else FrameKind.KERNEL
    return recording.frame(frame.symbol, frame.module or "", kind, ip - frame.offset)
