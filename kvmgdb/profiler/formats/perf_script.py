"""The text that ``perf script`` prints: each sample with its stack, in the order
of time. What FlameGraph's stackcollapse-perf.pl, speedscope, the Firefox Profiler
and others read.

A sample's line is that of ``perf script -F comm,pid,tid,cpu,time,period,event``;
the frames below it are those of ``-F ip,sym,symoff,dso``, the innermost first. As
a recording keeps functions and not addresses within them, offsets are 0.
"""

from __future__ import annotations

from typing import BinaryIO

from kvmgdb.profiler.recording import NO_VCPU, Frame, FrameKind, Recording, Sample
from kvmgdb.profiler.view import Path, Selection, View, label, period_ns, state_name

_KERNEL = "[kernel.kallsyms]"


def write(recording: Recording, view: View, file: BinaryIO) -> None:
    selection = Selection(recording, view)
    period = period_ns(recording) or 1
    stacks: dict[Path, str] = {}
    for sample, path in selection.samples():
        lines = stacks.get(path)
        if lines is None:
            frames = selection.frames(path)
            lines = stacks[path] = "".join(map(_line, reversed(frames)))
        file.write((_title(recording, sample, period) + lines + "\n").encode())


def _title(recording: Recording, sample: Sample, period: int) -> str:
    task = recording.tasks[sample.task]
    cpu = 0 if sample.vcpu == NO_VCPU else sample.vcpu
    seconds, rest = divmod(recording.start_ns + sample.time_ns, 10**9)
    event = "cpu-clock" if sample.vcpu != NO_VCPU else state_name(sample.state).replace(" ", "-")
    return (
        f"{task.name} {task.pid}/{task.tid} [{cpu:03}] "
        f"{seconds}.{rest // 1000:06}: {period} {event}:\n"
    )


def _line(frame: Frame) -> str:
    if frame.kind is FrameKind.KERNEL:
        place = _KERNEL
    elif frame.kind is FrameKind.MODULE:
        place = f"[{frame.module}]"
    else:
        place = frame.module or "[unknown]"
    name = frame.name or ("[unknown]" if frame.module else label(frame))
    return f"\t{frame.address:16x} {name}+0x0 ({place})\n"
