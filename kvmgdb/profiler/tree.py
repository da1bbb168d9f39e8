"""Call trees: the stacks of a recording, put together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kvmgdb.profiler.recording import Columns, Frame, FrameKind, Recording
from kvmgdb.profiler.view import Path, Selection, View, label, without_stack


class Function(NamedTuple):
    """What frames have in common that are shown as one."""

    label: str
    module: str
    kind: FrameKind


@dataclass(slots=True)
class Node:
    """A function, called along one path. ``total`` counts the samples in it and in
    what it calls, ``own`` those in itself."""

    function: Function
    parent: Node | None
    own: int = 0
    total: int = 0
    children: dict[Function, Node] = field(default_factory=dict)

    def child(self, function: Function) -> Node:
        node = self.children.get(function)
        if node is None:
            node = self.children[function] = Node(function, self)
        return node

    def ranked(self) -> list[Node]:
        """The children, the heaviest first."""
        return sorted(self.children.values(), key=lambda node: (-node.total, node.function))


@dataclass(slots=True)
class Share:
    """Samples in a function itself, and in it or what it calls."""

    own: int = 0
    total: int = 0


class Line(NamedTuple):
    """A call in a printed tree: its depth, and the column of indentation it gets."""

    node: Node
    depth: int
    column: int


_ALL = Function("all", "", FrameKind.MARK)

_MAX_DRAWN = 20_000
"""Calls in a picture: more than a browser draws well, or a person can see."""


def function_of(frame: Frame) -> Function:
    return Function(label(frame), frame.module, frame.kind)


class CallTree:
    """Grows by the samples it is given. Calls of one function at different
    addresses are one, and so are equal names in one module."""

    def __init__(self, recording: Recording, view: View) -> None:
        self.root = Node(_ALL, None)
        self._selection = Selection(recording, view)
        self._nodes: dict[tuple[int, int], Node] = {}
        self._functions: dict[Frame, Function] = {}

    def add(self, columns: Columns | None = None) -> None:
        """Adds these samples, or all that the recording has."""
        for group, counts in self._selection.counts(columns).items():
            for stack, count in counts.items():
                path = self._selection.path(group, stack)
                node = self._node(path)
                if not stack:
                    node = node.child(self._function(without_stack(path)))
                self._count(node, count)

    def _count(self, node: Node, count: int) -> None:
        node.own += count
        above: Node | None = node
        while above is not None:
            above.total += count
            above = above.parent

    def _node(self, path: Path) -> Node:
        """Where a stack ends. Most stacks differ little from one that is known."""
        recording = self._selection.recording
        stack = path.stack
        unknown = []
        while (node := self._nodes.get((path.roots, stack))) is None:
            if not stack:
                node = self.root
                for root in self._selection.roots(path):
                    node = node.child(self._function(root))
                self._nodes[path.roots, 0] = node
                break
            unknown.append(stack)
            stack = recording.parents[stack]
        for stack in reversed(unknown):
            frame = recording.frames[recording.node_frames[stack]]
            node = node.child(self._function(frame))
            self._nodes[path.roots, stack] = node
        return node

    def _function(self, frame: Frame) -> Function:
        function = self._functions.get(frame)
        if function is None:
            function = self._functions[frame] = function_of(frame)
        return function

    # -- reading

    def walk(self) -> Iterator[Node]:
        """All nodes but the root; callers before what they call."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            waiting.extend(node.children.values())
            if node is not self.root:
                yield node

    def least_drawn(self) -> int:
        """The samples that a call needs to be in a picture."""
        totals = sorted((node.total for node in self.walk()), reverse=True)
        return 1 if len(totals) <= _MAX_DRAWN else totals[_MAX_DRAWN] + 1

    def shares(self) -> dict[Function, Share]:
        """What each function takes, root frames among them. A function that calls
        itself counts once."""
        found: dict[Function, Share] = {}
        for node in self.walk():
            share = found.setdefault(node.function, Share())
            share.own += node.own
            if not _inside_itself(node):
                share.total += node.total
        return found

    def callers(self, function: Function) -> Node:
        """A tree turned over: below the function are its callers, below those
        theirs. ``total`` counts the samples in the function that came that way."""
        top = Node(function, None)
        for node in self.walk():
            if node.function != function or _inside_itself(node):
                continue
            top.own += node.own
            top.total += node.total
            place = top
            above = node.parent
            while above is not None and above is not self.root:
                place = place.child(above.function)
                place.total += node.total
                above = above.parent
        return top


def printed(top: Node, least: float) -> list[Line]:
    """The calls below ``top`` that have so many samples, in order. Of a chain of
    calls without branches all but the first share a column: stacks are deeper than
    terminals are wide."""
    found: list[Line] = []
    # Each with its caller's column, and whether its caller is alone below its own.
    waiting = [(child, 0, -1, False) for child in reversed(top.ranked())]
    while waiting:
        node, depth, column, in_chain = waiting.pop()
        if node.total < least:
            continue
        alone = depth > 0 and node.parent is not None and node.total == node.parent.total
        if not (alone and in_chain):
            column += 1
        found.append(Line(node, depth, column))
        waiting += [(child, depth + 1, column, alone) for child in reversed(node.ranked())]
    return found


def place(node: Node) -> str:
    """Whose code a call is in, where that is not clear from its name or its caller."""
    function = node.function
    if function.kind is FrameKind.MODULE or not function.module:
        return ""
    above = node.parent.function.module if node.parent is not None else ""
    return "" if function.module == above else f"  ({function.module})"


def _inside_itself(node: Node) -> bool:
    above = node.parent
    while above is not None:
        if above.function == node.function:
            return True
        above = above.parent
    return False
