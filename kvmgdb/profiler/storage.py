"""Recordings in files of our own format (docs/report.md describes it)

    8 bytes   "KVMGDBRC"
    u32       version, 1
    then sections, in the order of _SECTIONS:
      u32     CRC-32 of the content
      u64     bytes of the content
      u64     bytes that follow
      ...     the content, deflated (zlib)

Everything is little-endian. The first section is JSON: what the recording was
of, and its counters. Then come the tables of VMs, tasks and functions as lines
of UTF-8 with tabs between the fields, and as columns of numbers the tree of
stacks and the samples. A file may come from anywhere: nothing in it is believed
before it is checked.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from kvmgdb.errors import KvmgdbError
from kvmgdb.profiler.output import whole_file
from kvmgdb.profiler.recording import (
    COLUMN_TYPES,
    MAX_DEPTH,
    MAX_FRAMES,
    MAX_NODES,
    MAX_REMARKS,
    MAX_SAMPLES,
    MAX_TASKS,
    MAX_VMS,
    Columns,
    Counters,
    Frame,
    FrameKind,
    Recording,
    State,
    Task,
    Vm,
    printable,
)

SUFFIX = ".kvmprof"

_MAGIC = b"KVMGDBRC"
_VERSION = 1
_SECTION = struct.Struct("<IQQ")
_MAX_FACTS = 1 << 20
_MAX_TABLE = 96 << 20
_PIECE = 1 << 20
_MAX_U64 = (1 << 64) - 1
_MAX_U32 = (1 << 32) - 1
_MAX_RATE = 1e9


class RecordingError(KvmgdbError):
    """A file is no recording, or a damaged one; ``path`` names it."""

    def __init__(self, path: Path, problem: str, remedy: str | None = None) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}", remedy)


class _DamageError(Exception):
    """What is wrong with the content."""


# ---- writing ----------------------------------------------------------------


def save(recording: Recording, path: Path) -> None:
    """Writes the recording, whole or not at all. Raises OutputError."""
    facts = {
        "target": recording.target,
        "rate": recording.rate,
        "start_ns": recording.start_ns,
        "duration_ns": recording.duration_ns,
        "counters": vars(recording.counters),
        "remarks": recording.remarks,
    }
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
    with whole_file(path) as file:
        file.write(_MAGIC + struct.pack("<I", _VERSION))
        _write_section(file, text.encode())
        _write_table(file, recording.vms)
        _write_table(file, recording.tasks)
        _write_table(file, recording.frames)
        for column in (recording.parents, recording.node_frames, *recording.columns):
            _write_section(file, _little_endian(column))


def _write_table(file: BinaryIO, rows: Iterable[tuple[str | int, ...]]) -> None:
    # Names hold neither tabs nor line ends: the recording sees to that.
    lines = ("\t".join(map(_field, row)) + "\n" for row in rows)
    _write_section(file, "".join(lines).encode())


def _field(value: str | int) -> str:
    return value if isinstance(value, str) else f"{value:d}"


def _write_section(file: BinaryIO, content: bytes) -> None:
    packed = zlib.compress(content, 1)
    file.write(_SECTION.pack(zlib.crc32(content), len(content), len(packed)))
    file.write(packed)


def _little_endian(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()


# ---- reading ----------------------------------------------------------------


def load(path: Path) -> Recording:
    """Reads a recording. Raises RecordingError, also where it cannot be read."""
    try:
        with path.open("rb") as file:
            return _load(file)
    except OSError as error:
        raise RecordingError(path, error.strerror or str(error)) from error
    except _DamageError as error:
        raise RecordingError(path, f"this is not a usable recording: {error}") from error


def _load(file: BinaryIO) -> Recording:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise _DamageError("it does not begin like one")
    (version,) = struct.unpack("<I", _exactly(file, 4))
    if version != _VERSION:
        raise _DamageError(f"it has version {version}, and this kvmgdb reads {_VERSION}")
    facts = _facts(_read_section(file, _MAX_FACTS))
    vms = [_vm(row) for row in _read_table(file, 2, MAX_VMS)]
    tasks = [_task(row) for row in _read_table(file, 3, MAX_TASKS)]
    frames = [_frame(row) for row in _read_table(file, 4, MAX_FRAMES)]
    parents = _read_column(file, "I", MAX_NODES)
    node_frames = _read_column(file, "I", MAX_NODES)
    columns = Columns(*(_read_column(file, code, MAX_SAMPLES) for code in COLUMN_TYPES))
    if file.read(1):
        raise _DamageError("something follows its end")
    _check_tree(parents, node_frames, len(frames))
    _check_samples(columns, len(vms), len(tasks), len(parents))
    return replace(
        facts,
        vms=vms,
        tasks=tasks,
        frames=frames,
        parents=parents,
        node_frames=node_frames,
        columns=columns,
    )


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise _DamageError("it ends too early")
    return data


def _read_section(file: BinaryIO, limit: int) -> bytes:
    """The content of the next section, of at most ``limit`` bytes. Grows with what
    is there, not with what the file says will be there."""
    checksum, size, packed_size = _SECTION.unpack(_exactly(file, _SECTION.size))
    if size > limit:
        raise _DamageError(f"a part of it is said to have {size} bytes")
    inflate = zlib.decompressobj()
    content = bytearray()
    try:
        while packed_size:
            packed = _exactly(file, min(packed_size, _PIECE))
            packed_size -= len(packed)
            content += inflate.decompress(packed, size - len(content) + 1)
            if len(content) > size or inflate.unconsumed_tail or inflate.unused_data:
                raise _DamageError("a part of it is larger than it says")
    except zlib.error as error:
        raise _DamageError("a part of it cannot be unpacked") from error
    if not inflate.eof or len(content) != size or zlib.crc32(content) != checksum:
        raise _DamageError("a part of it is damaged")
    return bytes(content)


def _read_column(file: BinaryIO, code: str, limit: int) -> array[int]:
    column = array(code)
    content = _read_section(file, limit * column.itemsize)
    if len(content) % column.itemsize:
        raise _DamageError("a column does not end with a number")
    column.frombytes(content)
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _read_table(file: BinaryIO, fields: int, limit: int) -> list[list[str]]:
    content = _read_section(file, _MAX_TABLE)
    if content.count(b"\n") > limit:
        raise _DamageError(f"one of its tables has more than {limit} lines")
    try:
        rows = [line.decode().split("\t", fields) for line in content.split(b"\n")]
    except UnicodeDecodeError as error:
        raise _DamageError("a name is no UTF-8") from error
    if rows.pop() != [""] or any(len(row) != fields for row in rows):
        raise _DamageError("one of its tables cannot be read")
    return rows


def _check_tree(parents: array[int], frames: array[int], frame_count: int) -> None:
    """Every node comes after its caller: so there is no way around in a circle."""
    if not parents or len(parents) != len(frames) or parents[0] or frames[0]:
        raise _DamageError("its stacks have no root")
    depths = array("H", [0])
    for node, (parent, frame) in enumerate(zip(parents, frames, strict=True)):
        if not node:
            continue
        if parent >= node or frame >= frame_count:
            raise _DamageError("a stack leads nowhere")
        depths.append(depths[parent] + 1)
        if depths[node] > MAX_DEPTH:
            raise _DamageError(f"a stack is deeper than {MAX_DEPTH} functions")


def _check_samples(columns: Columns, vms: int, tasks: int, nodes: int) -> None:
    count = len(columns.time_ns)
    if any(len(column) != count for column in columns):
        raise _DamageError("its columns have different lengths")
    for column, limit, what in (
        (columns.vm, vms, "virtual machine"),
        (columns.task, tasks, "task"),
        (columns.stack, nodes, "stack"),
        (columns.state, len(State), "state"),
    ):
        if count and max(column) >= limit:
            raise _DamageError(f"a sample names a {what} that is not there")


# -- facts and rows


def _facts(content: bytes) -> Recording:
    """A recording that has no samples yet."""
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _DamageError("its first part is no JSON") from error
    if not isinstance(facts, dict):
        raise _DamageError("its first part is no object")
    target, rate, remarks = facts.get("target"), facts.get("rate"), facts.get("remarks")
    counters = facts.get("counters")
    if not isinstance(target, str):
        raise _DamageError("it does not say of what it is")
    if not isinstance(rate, int | float) or not 0 <= rate <= _MAX_RATE:
        raise _DamageError("it has no rate")
    if not isinstance(counters, dict):
        raise _DamageError("it has no counters")
    if not isinstance(remarks, list) or not all(isinstance(text, str) for text in remarks):
        raise _DamageError("its remarks cannot be read")
    return Recording(
        target=target,
        rate=float(rate),
        start_ns=_number(facts.get("start_ns"), _MAX_U64),
        duration_ns=_number(facts.get("duration_ns"), _MAX_U64),
        counters=Counters(
            **{name: _number(counters.get(name), _MAX_U64) for name in vars(Counters())}
        ),
        remarks=[printable(text) for text in remarks[:MAX_REMARKS]],
    )


def _number(value: object, limit: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise _DamageError("a number is not what it should be")
    return value


def _decimal(text: str, limit: int) -> int:
    # 20 digits are those of the largest 64-bit number.
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise _DamageError("a number in a table is none")
    return _number(int(text), limit)


def _vm(row: list[str]) -> Vm:
    name, banner = row
    return Vm(printable(name), printable(banner))


def _task(row: list[str]) -> Task:
    pid, tid, name = row
    return Task(_decimal(pid, _MAX_U32), _decimal(tid, _MAX_U32), printable(name))


def _frame(row: list[str]) -> Frame:
    name, module, kind, address = row
    return Frame(
        printable(name),
        printable(module),
        FrameKind(_decimal(kind, len(FrameKind) - 1)),
        _decimal(address, _MAX_U64),
    )
