"""A recording: what a profiler saw, compactly.

Frames, tasks and virtual machines are kept once and referred to by number.
Stacks are a tree, a node being a frame and the node of its caller, so that
stacks share what they have in common. A sample is a row of seven numbers
(24 bytes). Everything is bounded, for what fills it comes out of guest memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import compress
from typing import NamedTuple

NO_VCPU = 0xFFFF
"""The vCPU of a sample that is a task's which does not run."""

MAX_FRAMES = 1 << 18
MAX_NODES = 1 << 20
MAX_TASKS = 1 << 17
MAX_VMS = 1 << 12
MAX_SAMPLES = 1 << 25
MAX_DEPTH = 512
MAX_NAME = 512
MAX_TASK_NAME = 64
MAX_TEXT = 1 << 23
MAX_REMARKS = 100

_MAX_U32 = (1 << 32) - 1
_MAX_U64 = (1 << 64) - 1


class FrameKind(IntEnum):
    """What a frame belongs to; ``MARK`` is no code but a remark in brackets."""

    KERNEL = 0
    MODULE = 1
    USER = 2
    JIT = 3
    INTERPRETER = 4
    UNKNOWN = 5
    MARK = 6


class State(IntEnum):
    """What a vCPU did (``RUNNING``, ``HALTED``), or the state of a task that does
    not run, as in /proc/PID/stat."""

    RUNNING = 0
    HALTED = 1
    INTERRUPTIBLE = 2
    UNINTERRUPTIBLE = 3
    STOPPED = 4
    TRACED = 5
    PARKED = 6
    IDLE_TASK = 7


class Frame(NamedTuple):
    """A function. ``module`` is a kernel module's name or a mapped file's path,
    ``address`` the guest-virtual address where the function starts. A function
    without a symbol has no name."""

    name: str
    module: str
    kind: FrameKind
    address: int


class Task(NamedTuple):
    """A thread of the guest: ``pid`` is its process's ID, ``tid`` its own."""

    pid: int
    tid: int
    name: str


class Vm(NamedTuple):
    """A virtual machine, and its kernel's banner if that is known."""

    name: str
    banner: str


class Sample(NamedTuple):
    """``time_ns`` since the recording's start; ``vm``, ``task`` and ``stack`` are
    numbers that the recording gave; ``held_ns`` is how long the vCPU stood still."""

    time_ns: int
    vm: int
    vcpu: int
    task: int
    stack: int
    state: int
    held_ns: int


@dataclass
class Counters:
    """What was not, or not wholly, recorded. ``errors``: samples that failed;
    ``broken``: stacks that do not reach their root; ``missed``: samples that came
    too late to be taken; ``dropped``: samples for which there was no room."""

    errors: int = 0
    broken: int = 0
    missed: int = 0
    dropped: int = 0


class Columns(NamedTuple):
    """The samples, a column each."""

    time_ns: array[int]
    vm: array[int]
    vcpu: array[int]
    task: array[int]
    stack: array[int]
    state: array[int]
    held_ns: array[int]

    @classmethod
    def empty(cls) -> Columns:
        return cls(*(array(code) for code in COLUMN_TYPES))


COLUMN_TYPES = ("Q", "H", "H", "I", "I", "B", "I")
"""Of the columns, as the array module names them: 8, 2, 2, 4, 4, 1 and 4 bytes."""


def printable(text: str, limit: int = MAX_NAME) -> str:
    """A name that a guest made up, fit for terminals, lines and files."""
    text = text[:limit]
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@dataclass
class Recording:
    """Samples of one or more virtual machines.

    ``target`` is what the user named, ``rate`` the samples a second and vCPU that
    were asked for (0: not sampled by time), ``start_ns`` the time of day in ns
    since 1970, ``duration_ns`` how long it took.
    """

    target: str
    rate: float = 0.0
    start_ns: int = 0
    duration_ns: int = 0
    counters: Counters = field(default_factory=Counters)
    remarks: list[str] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    vms: list[Vm] = field(default_factory=list)
    # Node 0 is the stack without frames.
    parents: array[int] = field(default_factory=lambda: array("I", [0]))
    node_frames: array[int] = field(default_factory=lambda: array("I", [0]))
    columns: Columns = field(default_factory=Columns.empty)

    def __post_init__(self) -> None:
        self.target = printable(self.target)
        self._text = sum(len(frame.name) + len(frame.module) for frame in self.frames)
        self._frame_ids = {frame: number for number, frame in enumerate(self.frames)}
        self._task_ids = {task: number for number, task in enumerate(self.tasks)}
        self._vm_ids = {vm: number for number, vm in enumerate(self.vms)}
        self._nodes = {
            parent << 32 | frame: node
            for node, (parent, frame) in enumerate(zip(self.parents, self.node_frames, strict=True))
            if node
        }

    def __len__(self) -> int:
        return len(self.columns.time_ns)

    # -- recording

    def frame(self, name: str, module: str, kind: FrameKind, address: int) -> int:
        """The number of a frame. Where there is no room for another, that of one
        that says so."""
        return self._frame(
            Frame(printable(name), printable(module), FrameKind(kind), address & _MAX_U64)
        )

    def _frame(self, frame: Frame) -> int:
        number = self._frame_ids.get(frame)
        if number is not None:
            return number
        # The last place is kept for the mark.
        if len(self.frames) >= MAX_FRAMES - 1 or self._text > MAX_TEXT:
            frame = Frame("[too many different functions]", "", FrameKind.MARK, 0)
            number = self._frame_ids.get(frame)
            if number is not None:
                return number
        number = len(self.frames)
        self.frames.append(frame)
        self._frame_ids[frame] = number
        self._text += len(frame.name) + len(frame.module)
        return number

    def push(self, stack: int, frame: int) -> int:
        """The stack that calling ``frame`` from the innermost function of ``stack``
        makes. Where the tree is full, ``stack`` itself."""
        key = stack << 32 | frame
        node = self._nodes.get(key)
        if node is not None:
            return node
        node = len(self.parents)
        if node >= MAX_NODES:
            return stack
        self.parents.append(stack)
        self.node_frames.append(frame)
        self._nodes[key] = node
        return node

    def stack(self, frames: Iterable[int]) -> int:
        """The number of a stack, whose frames are given from the root to the
        innermost. Past MAX_DEPTH the innermost frames are left out."""
        node = 0
        for depth, frame in enumerate(frames):
            if depth == MAX_DEPTH:
                break
            node = self.push(node, frame)
        return node

    def task(self, pid: int, tid: int, name: str) -> int:
        """The number of a task. A task that changes its name is another one."""
        task = Task(pid & _MAX_U32, tid & _MAX_U32, printable(name, MAX_TASK_NAME))
        number = self._task_ids.get(task)
        if number is None:
            if len(self.tasks) >= MAX_TASKS - 1:
                task = Task(0, 0, "[too many tasks]")
            number = self._task_ids.setdefault(task, len(self.tasks))
            if number == len(self.tasks):
                self.tasks.append(task)
        return number

    def vm(self, name: str, banner: str = "") -> int:
        """The number of a virtual machine. Raises ValueError past MAX_VMS."""
        vm = Vm(printable(name), printable(banner))
        number = self._vm_ids.setdefault(vm, len(self.vms))
        if number == len(self.vms):
            if number >= MAX_VMS:
                del self._vm_ids[vm]
                raise ValueError(f"a recording takes no more than {MAX_VMS} virtual machines")
            self.vms.append(vm)
        return number

    def add(
        self, time_ns: int, vm: int, vcpu: int, task: int, stack: int, state: State, held_ns: int
    ) -> None:
        """Adds a sample; one for which there is no room counts as dropped."""
        columns = self.columns
        if len(columns.time_ns) >= MAX_SAMPLES:
            self.counters.dropped += 1
            return
        columns.time_ns.append(time_ns)
        columns.vm.append(vm)
        columns.vcpu.append(vcpu)
        columns.task.append(task)
        columns.stack.append(stack)
        columns.state.append(state)
        columns.held_ns.append(min(held_ns, _MAX_U32))

    def forget(self, vm: int, after_ns: int) -> int:
        """Takes out the samples of a virtual machine that are later than that, and
        gives their number."""
        places = zip(self.columns.vm, self.columns.time_ns, strict=True)
        kept = [not (of == vm and time_ns > after_ns) for of, time_ns in places]
        for column in self.columns:
            column[:] = array(column.typecode, compress(column, kept))
        return kept.count(False)

    def remark(self, text: str) -> None:
        """Something about the whole that whoever reads the recording should know."""
        if len(self.remarks) < MAX_REMARKS:
            self.remarks.append(printable(text))

    def take_samples(self) -> Columns:
        """The samples so far, which the recording then no longer has: for those who
        look at a recording that goes on without end."""
        columns, self.columns = self.columns, Columns.empty()
        return columns

    # -- reading

    def samples(self) -> Iterator[Sample]:
        """The samples, in the order in which they were added."""
        return map(Sample, *self.columns)

    def stack_frames(self, stack: int) -> list[int]:
        """The numbers of a stack's frames, from the root to the innermost."""
        frames = []
        while stack:
            frames.append(self.node_frames[stack])
            stack = self.parents[stack]
        frames.reverse()
        return frames
