"""What of a recording is looked at, and under which roots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from operator import le
from typing import NamedTuple

from kvmgdb.profiler.recording import (
    NO_VCPU,
    Columns,
    Frame,
    FrameKind,
    Recording,
    Sample,
    State,
    Task,
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


class Path(NamedTuple):
    """Where a sample was: samples with equal paths have equal frames, root frames
    among them. ``roots`` is a number that the selection gave."""

    roots: int
    stack: int
    halted: bool


def state_name(state: int) -> str:
    return _STATE_NAMES[State(state)]


def label(frame: Frame) -> str:
    """A frame's name for people: modules of the kernel in brackets, as the
    kernel writes them; code without a symbol by its file or address."""
    if frame.name:
        return f"{frame.name} [{frame.module}]" if frame.kind is FrameKind.MODULE else frame.name
    if frame.module:
        return f"[{frame.module.rsplit('/', 1)[-1].strip('[]')}]"
    return f"{frame.address:#x}"


def task_label(task: Task) -> str:
    """A guest that is not Linux has no tasks that we know."""
    return f"{task.name} ({task.tid})" if task.name else "[no task]"


def period_ns(recording: Recording) -> int:
    """What a sample stands for in ns; 0 where the samples are not of time."""
    return round(1e9 / recording.rate) if recording.rate else 0


class Selection:
    """The samples of a recording that a view wants."""

    def __init__(self, recording: Recording, view: View) -> None:
        self.recording = recording
        self.view = view
        self._roots: dict[tuple[Frame, ...], int] = {}
        self._root_lists: list[tuple[Frame, ...]] = []
        self._numbers: dict[Group, int] = {}

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

    def samples(self) -> Iterator[tuple[Sample, Path]]:
        """The samples in the order of time, and where they were."""
        # Of each group the number of its roots; -1 for one that is not wanted.
        known: dict[tuple[int, int, int, int], int] = {}
        for sample in self._by_time():
            key = (sample.vm, sample.vcpu, sample.task, sample.state)
            roots = known.get(key)
            if roots is None:
                group = Group(*key)
                roots = known[key] = self._number(group) if self.wants(group) else -1
            if roots >= 0:
                yield sample, Path(roots, sample.stack, sample.state == State.HALTED)

    def _by_time(self) -> Iterator[Sample]:
        """vCPUs, and VMs all the more, are drained one after the other."""
        times = self.recording.columns.time_ns
        if all(map(le, times, islice(times, 1, None))):
            return self.recording.samples()
        order = sorted(range(len(times)), key=times.__getitem__)
        return (Sample(*(column[place] for column in self.recording.columns)) for place in order)

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

    def path(self, group: Group, stack: int) -> Path:
        """Where the samples of a group that have this stack were."""
        return Path(self._number(group), stack, group.state == State.HALTED)

    def _number(self, group: Group) -> int:
        number = self._numbers.get(group)
        if number is None:
            roots = tuple(
                Frame(self._root(root, group), "", FrameKind.MARK, 0) for root in self.view.by
            )
            number = self._roots.setdefault(roots, len(self._root_lists))
            if number == len(self._root_lists):
                self._root_lists.append(roots)
            self._numbers[group] = number
        return number

    def roots(self, path: Path) -> tuple[Frame, ...]:
        """The frames that stand below a path's stack."""
        return self._root_lists[path.roots]

    def _root(self, root: Root, group: Group) -> str:
        match root:
            case Root.VM:
                return self.recording.vms[group.vm].name
            case Root.VCPU:
                return "no vCPU" if group.vcpu == NO_VCPU else f"vCPU {group.vcpu}"
            case Root.TASK:
                return task_label(self.recording.tasks[group.task])
            case Root.STATE:
                return state_name(group.state)

    def frames(self, path: Path) -> list[Frame]:
        """The frames, from the root to the innermost, roots included. There is always
        one that is none of those."""
        table = self.recording.frames
        found = [table[number] for number in self.recording.stack_frames(path.stack)]
        return [*self.roots(path), *(found or [without_stack(path)])]


def without_stack(path: Path) -> Frame:
    """What stands for a stack that has no functions."""
    return IDLE if path.halted else NOTHING
