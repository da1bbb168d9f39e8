"""Folded stacks: a line for each stack, its functions separated by semicolons, and
how often it was seen. What flamegraph.pl, inferno and many others read."""

from __future__ import annotations

from collections import Counter
from typing import BinaryIO

from kvmgdb.profiler.recording import Recording
from kvmgdb.profiler.view import Selection, View, label


def write(recording: Recording, view: View, file: BinaryIO) -> None:
    selection = Selection(recording, view)
    lines: Counter[str] = Counter()
    for group, counts in selection.counts().items():
        for stack, count in counts.items():
            frames = selection.frames(selection.path(group, stack))
            # The format knows no way to write a semicolon.
            lines[";".join(label(frame).replace(";", ":") for frame in frames)] += count
    for line in sorted(lines):
        file.write(f"{line} {lines[line]}\n".encode())
