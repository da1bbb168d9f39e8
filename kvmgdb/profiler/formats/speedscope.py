"""speedscope's own JSON: a profile for each vCPU, its stacks in the order of time.

https://www.speedscope.app/file-format-schema.json
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO

from kvmgdb import __version__
from kvmgdb.profiler.recording import NO_VCPU, Frame, Recording
from kvmgdb.profiler.view import Path, Selection, View, label, period_ns

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"
_PIECE = 10_000


@dataclass
class _Profile:
    """The stacks of a vCPU, by number, and for how many samples each lasted."""

    stacks: array[int] = field(default_factory=lambda: array("I"))
    weights: array[int] = field(default_factory=lambda: array("I"))

    def add(self, stack: int) -> None:
        if self.stacks and self.stacks[-1] == stack:
            self.weights[-1] += 1
        else:
            self.stacks.append(stack)
            self.weights.append(1)


class _Tables:
    """The file's frames, and stacks as the file writes them."""

    def __init__(self, selection: Selection) -> None:
        self.frames: dict[Frame, int] = {}
        self.texts: list[str] = []
        self._selection = selection
        self._numbers: dict[Path, int] = {}

    def stack(self, path: Path) -> int:
        number = self._numbers.get(path)
        if number is None:
            number = self._numbers[path] = len(self.texts)
            frames = self._selection.frames(path)
            places = [self.frames.setdefault(frame, len(self.frames)) for frame in frames]
            self.texts.append(json.dumps(places, separators=(",", ":")))
        return number


def write(recording: Recording, view: View, file: BinaryIO) -> None:
    selection = Selection(recording, view)
    tables = _Tables(selection)
    profiles: dict[tuple[int, int], _Profile] = {}
    for sample, path in selection.samples():
        place = (sample.vm, sample.vcpu)
        if place not in profiles:
            profiles[place] = _Profile()
        profiles[place].add(tables.stack(path))
    head = {
        "$schema": _SCHEMA,
        "exporter": f"kvmgdb {__version__}",
        "name": recording.target,
        "activeProfileIndex": 0,
        "shared": {"frames": [_frame(frame) for frame in tables.frames]},
    }
    file.write(json.dumps(head)[:-1].encode())
    file.write(b', "profiles": [')
    for number, (place, profile) in enumerate(sorted(profiles.items())):
        file.write(b", " if number else b"")
        _write_profile(file, recording, _name(recording, *place), profile, tables.texts)
    file.write(b"]}\n")


def _frame(frame: Frame) -> dict[str, str]:
    found = {"name": label(frame)}
    if frame.module:
        found["file"] = frame.module
    return found


def _name(recording: Recording, vm: int, vcpu: int) -> str:
    what = "sleeping tasks" if vcpu == NO_VCPU else f"vCPU {vcpu}"
    return f"{recording.vms[vm].name}, {what}" if len(recording.vms) > 1 else what


def _write_profile(
    file: BinaryIO, recording: Recording, name: str, profile: _Profile, texts: list[str]
) -> None:
    period = period_ns(recording)
    head = {
        "type": "sampled",
        "name": name,
        "unit": "nanoseconds" if period else "none",
        "startValue": 0,
        "endValue": sum(profile.weights) * (period or 1),
    }
    file.write(json.dumps(head)[:-1].encode())
    file.write(b', "samples": [')
    _write_list(file, (texts[stack] for stack in profile.stacks))
    file.write(b'], "weights": [')
    _write_list(file, (str(weight * (period or 1)) for weight in profile.weights))
    file.write(b"]}")


def _write_list(file: BinaryIO, texts: Iterable[str]) -> None:
    """Writes a long list, never all of it in memory."""
    rest = iter(texts)
    comma = b""
    while piece := list(islice(rest, _PIECE)):
        file.write(comma + ",".join(piece).encode())
        comma = b","
