"""What ``kvmgdb top`` lists, as text: independent of how it is drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import Enum

from kvmgdb.profiler.live import Live
from kvmgdb.profiler.recording import NO_VCPU, State, Task
from kvmgdb.profiler.tree import CallTree, Function, Share, place, printed
from kvmgdb.profiler.view import View, task_label

_LEAST_CALLER = 0.005  # of the samples in a function
_NARROW = 40
"""Columns below which only what matters most is shown."""


class Listing(Enum):
    """The lists that the user goes through."""

    FUNCTIONS = "functions"
    TASKS = "tasks"
    VCPUS = "vCPUs"

    @property
    def next(self) -> Listing:
        every = list(Listing)
        return every[(every.index(self) + 1) % len(every)]


@dataclass(frozen=True)
class Choice:
    """What is to be listed. ``callers`` opens a function, ``search`` is part of the
    names that are listed, in whatever case."""

    listing: Listing = Listing.FUNCTIONS
    view: View = field(default_factory=View)
    by_total: bool = False
    search: str = ""
    callers: Function | None = None

    def opened(self, key: object) -> Choice:
        """What opening a row leads to."""
        match key:
            case Function() if self.callers is None:
                return replace(self, callers=key, search="")
            case Task():
                # Idle tasks of all CPUs have the number 0.
                task = str(key.tid) if key.tid else key.name
                return Choice(view=replace(self.view, task=task), by_total=self.by_total)
            case int():
                return Choice(view=replace(self.view, vcpu=key), by_total=self.by_total)
        return self

    def closed(self) -> Choice:
        """The way back from what was opened or searched for."""
        if self.search:
            return replace(self, search="")
        if self.callers is not None:
            return replace(self, callers=None)
        return replace(self, view=replace(self.view, task=None, vcpu=None))

    def title(self) -> str:
        if self.callers is not None:
            words = [f"callers of {self.callers.label}"]
        else:
            words = [self.listing.value]
        if self.view.task is not None:
            words.append(f"of task {self.view.task}")
        if self.view.vcpu is not None:
            words.append(f"on vCPU {self.view.vcpu}")
        if self.callers is None and self.listing is Listing.FUNCTIONS:
            words.append("by total" if self.by_total else "by self")
        if self.view.idle:
            words.append("with idle")
        return " ".join(words)


@dataclass(frozen=True)
class Row:
    """``key`` is what opening the row is about: a function, a task, a vCPU's number."""

    key: object
    text: str


@dataclass(frozen=True)
class Page:
    heading: str
    rows: tuple[Row, ...]


def page(live: Live, choice: Choice, width: int) -> Page:
    """The rows of what was chosen, for a screen of ``width`` columns."""
    if choice.callers is not None:
        return _callers(live.tree(choice.view), choice, choice.callers)
    if choice.listing is Listing.FUNCTIONS:
        return _functions(live.tree(choice.view), choice, width)
    if choice.listing is Listing.TASKS:
        return _tasks(live, choice)
    return _vcpus(live, choice)


def _percent(count: int, all_: int) -> str:
    return f"{100 * count / all_:.1f}%" if all_ else "-"


def _fits(name: str, choice: Choice) -> bool:
    return choice.search.casefold() in name.casefold()


def _functions(tree: CallTree, choice: Choice, width: int) -> Page:
    def order(item: tuple[Function, Share]) -> tuple[int, int, Function]:
        function, share = item
        first, second = share.own, share.total
        if choice.by_total:
            first, second = second, first
        return -first, -second, function

    all_ = tree.root.total
    rows = []
    for function, share in sorted(tree.shares().items(), key=order):
        if not _fits(function.label, choice):
            continue
        own, total = _percent(share.own, all_), _percent(share.total, all_)
        if width < _NARROW:
            text = f"{total if choice.by_total else own:>6} {function.label}"
        else:
            text = f"{own:>7} {total:>7}  {function.label}"
            # A module of the kernel stands in the label already.
            if function.module and f"[{function.module}]" not in function.label:
                text += f"  ({function.module})"
        rows.append(Row(function, text))
    if width < _NARROW:
        heading = f"{'TOTAL' if choice.by_total else 'SELF':>6} FUNCTION"
    else:
        heading = f"{'SELF':>7} {'TOTAL':>7}  FUNCTION"
    return Page(heading, tuple(rows))


def _callers(tree: CallTree, choice: Choice, function: Function) -> Page:
    top = tree.callers(function)
    rows = [
        Row(
            line.node.function,
            f"{_percent(line.node.total, top.total):>7}  {'  ' * line.column}"
            f"{line.node.function.label}{place(line.node)}",
        )
        for line in printed(top, max(1.0, _LEAST_CALLER * top.total))
        if _fits(line.node.function.label, choice)
    ]
    return Page(f"{'SHARE':>7}  CALLER", tuple(rows))


def _tasks(live: Live, choice: Choice) -> Page:
    counts: Counter[Task] = Counter()
    for group, count in live.groups(choice.view).items():
        counts[live.recording.tasks[group.task]] += count
    rows = [
        Row(task, f"{_percent(count, counts.total()):>7}  {task_label(task)}")
        for task, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if _fits(task.name, choice)
    ]
    return Page(f"{'SHARE':>7}  TASK", tuple(rows))


def _vcpus(live: Live, choice: Choice) -> Page:
    """Each with the part of its own time in which it ran."""
    ran: Counter[int] = Counter()
    all_: Counter[int] = Counter()
    for group, count in live.groups(replace(choice.view, idle=True)).items():
        if group.vcpu != NO_VCPU:
            all_[group.vcpu] += count
            ran[group.vcpu] += count if group.state == State.RUNNING else 0
    rows = [
        Row(vcpu, f"{_percent(ran[vcpu], all_[vcpu]):>7}  vCPU {vcpu}")
        for vcpu in sorted(all_)
        if _fits(f"vCPU {vcpu}", choice)
    ]
    return Page(f"{'BUSY':>7}  VCPU", tuple(rows))
