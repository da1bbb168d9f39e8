"""pprof's gzipped protocol buffer (github.com/google/pprof, proto/profile.proto).

The eight messages of that file are flat: numbers, strings and messages, each by
a field number. Writing them takes the few lines of ``_Message``; the protobuf
package would be a dependency of every user, with generated code that has to fit
its version.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from typing import BinaryIO

from kvmgdb.profiler.recording import NO_VCPU, Frame, FrameKind, Recording
from kvmgdb.profiler.view import (
    Group,
    Selection,
    View,
    label,
    period_ns,
    state_name,
)

# Field numbers of message Profile.
_SAMPLE_TYPE, _SAMPLE, _MAPPING, _LOCATION, _FUNCTION, _STRING_TABLE = 1, 2, 3, 4, 5, 6
_TIME_NANOS, _DURATION_NANOS, _PERIOD_TYPE, _PERIOD, _COMMENT = 9, 10, 11, 12, 13
_DEFAULT_SAMPLE_TYPE = 14

_KERNEL = "[kernel.kallsyms]"
_MAX_INT64 = (1 << 63) - 1


class _Message:
    """Bytes of a message: https://protobuf.dev/programming-guides/encoding/"""

    def __init__(self) -> None:
        self.content = bytearray()

    def number(self, field: int, value: int) -> None:
        """An int64, uint64 or bool. 0 is what an absent field means."""
        if value:
            self._varint(field << 3)
            self._varint(value)

    def numbers(self, field: int, values: Iterable[int]) -> None:
        """A repeated number, packed."""
        packed = _Message()
        for value in values:
            packed._varint(value)
        self.message(field, packed)

    def message(self, field: int, message: _Message) -> None:
        self.bytes(field, message.content)

    def bytes(self, field: int, content: bytes | bytearray) -> None:
        self._varint(field << 3 | 2)
        self._varint(len(content))
        self.content += content

    def _varint(self, value: int) -> None:
        while value > 0x7F:
            self.content.append(value & 0x7F | 0x80)
            value >>= 7
        self.content.append(value)


class _Profile:
    def __init__(self, selection: Selection) -> None:
        self.message = _Message()
        self._selection = selection
        self._strings = {"": 0}
        self._functions: dict[tuple[str, str], int] = {}
        self._locations: dict[Frame, int] = {}
        self._mappings: dict[str, int] = {}

    # Each of these adds a thing when it is first named, and gives its number.

    def string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings))

    def _mapping(self, name: str) -> int:
        number = self._mappings.get(name)
        if number is None:
            number = self._mappings[name] = len(self._mappings) + 1
            mapping = _Message()
            mapping.number(1, number)
            mapping.number(5, self.string(name))
            mapping.number(7, True)  # has_functions: there is nothing left to look up
            self.message.message(_MAPPING, mapping)
        return number

    def _function(self, name: str, module: str) -> int:
        number = self._functions.get((name, module))
        if number is None:
            number = self._functions[name, module] = len(self._functions) + 1
            function = _Message()
            function.number(1, number)
            function.number(2, self.string(name))
            function.number(3, self.string(name))
            function.number(4, self.string(module))
            self.message.message(_FUNCTION, function)
        return number

    def _location(self, frame: Frame) -> int:
        number = self._locations.get(frame)
        if number is None:
            number = self._locations[frame] = len(self._locations) + 1
            module = _KERNEL if frame.kind is FrameKind.KERNEL else frame.module
            line = _Message()
            line.number(1, self._function(label(frame), module))
            location = _Message()
            location.number(1, number)
            location.number(2, self._mapping(module) if module else 0)
            location.number(3, frame.address)
            location.message(4, line)
            self.message.message(_LOCATION, location)
        return number

    def sample(self, group: Group, stack: int, values: list[int]) -> None:
        frames = self._selection.frames(self._selection.path(group, stack))
        sample = _Message()
        sample.numbers(1, [self._location(frame) for frame in reversed(frames)])
        sample.numbers(2, values)
        for label_ in self._labels(group):
            sample.message(3, label_)
        self.message.message(_SAMPLE, sample)

    def _labels(self, group: Group) -> Iterable[_Message]:
        recording = self._selection.recording
        task = recording.tasks[group.task]
        yield self._label("vm", recording.vms[group.vm].name)
        if group.vcpu != NO_VCPU:
            yield self._label("vcpu", str(group.vcpu))
        yield self._label("task", task.name)
        yield self._label("pid", str(task.pid))
        yield self._label("tid", str(task.tid))
        yield self._label("state", state_name(group.state))

    def _label(self, key: str, value: str) -> _Message:
        """Numbers are text too: the format does not tell 0 from none."""
        found = _Message()
        found.number(1, self.string(key))
        found.number(2, self.string(value))
        return found

    def value_type(self, name: str, unit: str) -> _Message:
        found = _Message()
        found.number(1, self.string(name))
        found.number(2, self.string(unit))
        return found

    def finish(self) -> bytes:
        for text in self._strings:
            self.message.bytes(_STRING_TABLE, text.encode())
        return bytes(self.message.content)


def write(recording: Recording, view: View, file: BinaryIO) -> None:
    selection = Selection(recording, view)
    profile = _Profile(selection)
    message = profile.message
    period = period_ns(recording)
    message.message(_SAMPLE_TYPE, profile.value_type("samples", "count"))
    if period:
        message.message(_SAMPLE_TYPE, profile.value_type("cpu", "nanoseconds"))
        message.message(_PERIOD_TYPE, profile.value_type("cpu", "nanoseconds"))
        message.number(_PERIOD, period)
        message.number(_DEFAULT_SAMPLE_TYPE, profile.string("cpu"))
    message.number(_TIME_NANOS, min(recording.start_ns, _MAX_INT64))
    message.number(_DURATION_NANOS, min(recording.duration_ns, _MAX_INT64))
    for comment in (recording.target, *(vm.banner for vm in recording.vms), *recording.remarks):
        message.number(_COMMENT, profile.string(comment))
    for group, counts in selection.counts().items():
        for stack, count in counts.items():
            profile.sample(group, stack, [count, count * period] if period else [count])
    with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
        packed.write(profile.finish())
