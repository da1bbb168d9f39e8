"""What of a recording is looked at, and under which roots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from kvmgdb.profiler.recording import (
    NO_VCPU,
    Columns,
    Frame,
    FrameKind,
    Recording,
    Sample,
    State,
)


class Root(StrEnum):
    """What can stand below all stacks as a frame of its own."""

    VM = "vm"
    VCPU = "vcpu"
    TASK = "task"
    STATE = "state"


_STATE_NAMES = {
    State.RUNNING: "running",
    State.HALTED: "halted",
    State.INTERRUPTIBLE: "sleeping",
    State.UNINTERRUPTIBLE: "sleeping, uninterruptible",
    State.STOPPED: "stopped",
    State.TRACED: "traced",
    State.PARKED: "parked",
    State.IDLE_TASK: "idle kernel thread",
}

IDLE = Frame("[idle]", "", FrameKind.MARK, 0)
"""Stands for the stack of a halted vCPU that was not looked into."""
NOTHING = Frame("[no stack]", "", FrameKind.MARK, 0)


@dataclass(frozen=True)
class View:
    """Which samples count, and the root frames that their stacks get, outermost
    first. Halted vCPUs count with ``idle`` only. ``task`` is a name, a PID or a
    TID."""

    by: tuple[Root, ...] = ()
    idle: bool = False
    task: str | None = None
    vcpu: int | None = None


class Group(NamedTuple):
    """What samples have in common apart from time and stack."""

    vm: int
    vcpu: int
    task: int
    state: int


def state_name(state: int) -> str:
    return _STATE_NAMES[State(state)]


def label(frame: Frame) -> str:
    """A frame's name for people: modules of the kernel in brackets, as the
    kernel writes them; code without a symbol by its file or address."""
    if frame.name:
        return f"{frame.name} [{frame.module}]" if frame.kind is FrameKind.MODULE else frame.name
    if frame.module:
        return f"[{frame.module.rsplit('/', 1)[-1]}]"
    return f"{frame.address:#x}"


def task_label(recording: Recording, task: int) -> str:
    found = recording.tasks[task]
    return f"{found.name} ({found.tid})"


def period_ns(recording: Recording) -> int:
    """What a sample stands for in ns; 0 where the samples are not of time."""
    return round(1e9 / recording.rate) if recording.rate else 0


class Selection:
    """The samples of a recording that a view wants."""

    def __init__(self, recording: Recording, view: View) -> None:
        self.recording = recording
        self.view = view

    def wants(self, group: Group) -> bool:
        view = self.view
        return (
            (view.idle or group.state != State.HALTED)
            and (view.vcpu is None or group.vcpu == view.vcpu)
            and (view.task is None or self._is_of(group.task, view.task))
        )

    def _is_of(self, number: int, wanted: str) -> bool:
        task = self.recording.tasks[number]
        return wanted in (task.name, str(task.pid), str(task.tid))

    def samples(self) -> Iterator[Sample]:
        """The samples in the order in which they were taken."""
        wanted: dict[Group, bool] = {}
        for sample in self.recording.samples():
            group = Group(sample.vm, sample.vcpu, sample.task, sample.state)
            choice = wanted.get(group)
            if choice is None:
                choice = wanted[group] = self.wants(group)
            if choice:
                yield sample

    def counts(self, columns: Columns | None = None) -> dict[Group, Counter[int]]:
        """How often each stack was seen, by group; of ``columns``, or of all samples."""
        columns = columns or self.recording.columns
        rows = Counter(
            zip(columns.vm, columns.vcpu, columns.task, columns.state, columns.stack, strict=True)
        )
        found: dict[Group, Counter[int]] = {}
        for (vm, vcpu, task, state, stack), count in rows.items():
            group = Group(vm, vcpu, task, state)
            if group in found or self.wants(group):
                found.setdefault(group, Counter())[stack] += count
        return found

    def roots(self, group: Group) -> tuple[Frame, ...]:
        """The frames that stand below a group's stacks."""
        return tuple(Frame(self._root(root, group), "", FrameKind.MARK, 0) for root in self.view.by)

    def _root(self, root: Root, group: Group) -> str:
        match root:
            case Root.VM:
                return self.recording.vms[group.vm].name
            case Root.VCPU:
                return "no vCPU" if group.vcpu == NO_VCPU else f"vCPU {group.vcpu}"
            case Root.TASK:
                return task_label(self.recording, group.task)
            case Root.STATE:
                return state_name(group.state)

    def frames(self, stack: int, state: int) -> list[Frame]:
        """A stack's frames, from the root to the innermost. There is always one."""
        table = self.recording.frames
        found = [table[number] for number in self.recording.stack_frames(stack)]
        return found or [IDLE if state == State.HALTED else NOTHING]
