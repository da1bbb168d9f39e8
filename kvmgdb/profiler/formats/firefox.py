"""The Firefox Profiler's processed format, version 48, as JSON
(github.com/firefox-devtools/profiler: src/types/profile.js,
docs-developer/processed-profile-format.md, CHANGELOG-formats.md; newer profilers
read older versions). Each vCPU is a thread, each VM a process.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import BinaryIO

from kvmgdb import __version__
from kvmgdb.profiler.recording import NO_VCPU, Frame, FrameKind, Recording, Sample
from kvmgdb.profiler.view import IDLE, Path, Selection, View, label, period_ns

_VERSION = 48
_GECKO_VERSION = 30

_OTHER, _KERNEL, _USER, _IDLE = range(4)
# The front end wants a grey one, for what has no category.
_CATEGORIES = [
    {"name": "Other", "color": "grey", "subcategories": ["Other"]},
    {"name": "Kernel", "color": "orange", "subcategories": ["Other"]},
    {"name": "User", "color": "yellow", "subcategories": ["Other"]},
    {"name": "Idle", "color": "transparent", "subcategories": ["Other"]},
]
_CATEGORY_OF = {
    FrameKind.KERNEL: _KERNEL,
    FrameKind.MODULE: _KERNEL,
    FrameKind.USER: _USER,
    FrameKind.JIT: _USER,
    FrameKind.INTERPRETER: _USER,
    FrameKind.UNKNOWN: _OTHER,
    FrameKind.MARK: _OTHER,
}


def _category(frame: Frame) -> int:
    return _IDLE if frame == IDLE else _CATEGORY_OF[frame.kind]


_LIBRARY = 1  # a resource's type


@dataclass
class _Thread:
    """The tables of a thread; each thing is in them once."""

    selection: Selection
    strings: dict[str, int] = field(default_factory=dict)
    resources: dict[str, int] = field(default_factory=dict)
    functions: dict[tuple[str, str], int] = field(default_factory=dict)
    frames: dict[Frame, int] = field(default_factory=dict)
    # A stack is its caller's number (or none) and its frame's.
    stacks: dict[tuple[int | None, int], int] = field(default_factory=dict)
    stack_categories: list[int] = field(default_factory=list)
    sample_stacks: list[int] = field(default_factory=list)
    sample_times: list[float] = field(default_factory=list)
    known: dict[Path, int] = field(default_factory=dict)

    def string(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings))

    def add(self, sample: Sample, path: Path) -> None:
        stack = self.known.get(path)
        if stack is None:
            stack = self.known[path] = self._stack(path)
        self.sample_stacks.append(stack)
        self.sample_times.append(sample.time_ns / 1e6)

    def _stack(self, path: Path) -> int:
        number: int | None = None
        for frame in self.selection.frames(path):
            key = (number, self.frames.setdefault(frame, len(self.frames)))
            if key not in self.stacks:
                self.stack_categories.append(_category(frame))
            number = self.stacks.setdefault(key, len(self.stacks))
        assert number is not None
        return number

    def _function(self, frame: Frame) -> int:
        key = (label(frame), frame.module)
        if frame.module:
            self.resources.setdefault(frame.module, len(self.resources))
        return self.functions.setdefault(key, len(self.functions))

    def tables(self) -> dict[str, object]:
        frame_functions = [self._function(frame) for frame in self.frames]
        return {
            "samples": {
                "stack": self.sample_stacks,
                "time": self.sample_times,
                "weight": None,
                "weightType": "samples",
                "length": len(self.sample_times),
            },
            "stackTable": {
                "frame": [frame for _, frame in self.stacks],
                "prefix": [prefix for prefix, _ in self.stacks],
                "category": self.stack_categories,
                "subcategory": [0] * len(self.stacks),
                "length": len(self.stacks),
            },
            "frameTable": self._frame_table(frame_functions),
            "funcTable": self._function_table(),
            "resourceTable": self._resource_table(),
            "nativeSymbols": _empty("libIndex", "address", "name", "functionSize"),
            "markers": _empty("data", "name", "startTime", "endTime", "phase", "category"),
            "stringArray": list(self.strings),
        }

    def _frame_table(self, functions: list[int]) -> dict[str, object]:
        count = len(functions)
        return {
            # Addresses would be relative to libraries that the front end could ask
            # about; all that is to be known is in the names.
            "address": [-1] * count,
            "inlineDepth": [0] * count,
            "category": [_category(frame) for frame in self.frames],
            "subcategory": [0] * count,
            "func": functions,
            "nativeSymbol": [None] * count,
            "innerWindowID": [0] * count,
            "implementation": [None] * count,
            "line": [None] * count,
            "column": [None] * count,
            "length": count,
        }

    def _function_table(self) -> dict[str, object]:
        count = len(self.functions)
        return {
            "name": [self.string(name) for name, _ in self.functions],
            "isJS": [False] * count,
            "relevantForJS": [False] * count,
            "resource": [self.resources.get(module, -1) for _, module in self.functions],
            "fileName": [None] * count,
            "lineNumber": [None] * count,
            "columnNumber": [None] * count,
            "length": count,
        }

    def _resource_table(self) -> dict[str, object]:
        count = len(self.resources)
        return {
            "lib": [None] * count,
            "name": [self.string(module) for module in self.resources],
            "host": [None] * count,
            "type": [_LIBRARY] * count,
            "length": count,
        }


def _empty(*columns: str) -> dict[str, object]:
    return {**{name: [] for name in columns}, "length": 0}


def write(recording: Recording, view: View, file: BinaryIO) -> None:
    selection = Selection(recording, view)
    threads: dict[tuple[int, int], _Thread] = {}
    for sample, path in selection.samples():
        place = (sample.vm, sample.vcpu)
        if place not in threads:
            threads[place] = _Thread(selection)
        threads[place].add(sample, path)
    head = {"meta": _meta(recording), "libs": [], "pages": [], "counters": []}
    file.write(json.dumps(head)[:-1].encode())
    file.write(b', "threads": [')
    for number, (vm, vcpu) in enumerate(sorted(threads)):
        file.write(b", " if number else b"")
        thread = {**_identity(recording, vm, vcpu), **threads[vm, vcpu].tables()}
        file.write(json.dumps(thread, separators=(",", ":")).encode())
    file.write(b"]}\n")


def _meta(recording: Recording) -> dict[str, object]:
    return {
        "interval": (period_ns(recording) or 10**6) / 1e6,
        "startTime": recording.start_ns / 1e6,
        "profilingStartTime": 0,
        "profilingEndTime": recording.duration_ns / 1e6,
        "processType": 0,
        "product": recording.target,
        "importedFrom": f"kvmgdb {__version__}",
        "stackwalk": 1,
        "debug": False,
        "version": _GECKO_VERSION,
        "preprocessedProfileVersion": _VERSION,
        "symbolicated": True,
        "symbolicationNotSupported": True,
        "usesOnlyOneStackType": True,
        "doesNotUseFrameImplementation": True,
        "sourceCodeIsNotOnSearchfox": True,
        "keepProfileThreadOrder": True,
        "platform": "X11",
        "oscpu": recording.vms[0].banner if recording.vms else "",
        "categories": _CATEGORIES,
        "markerSchema": [],
    }


def _identity(recording: Recording, vm: int, vcpu: int) -> dict[str, object]:
    name = "sleeping tasks" if vcpu == NO_VCPU else f"vCPU {vcpu}"
    return {
        "processType": "default",
        "processName": recording.vms[vm].name,
        "processStartupTime": 0,
        "processShutdownTime": None,
        "registerTime": 0,
        "unregisterTime": None,
        "pausedRanges": [],
        "name": name,
        "isMainThread": vcpu == 0,
        "pid": str(vm),
        "tid": f"{vm}.{vcpu}",
    }
