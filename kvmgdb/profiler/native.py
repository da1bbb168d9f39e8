"""``native/include/kvmgdb/profile.h`` with Python types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvmgdb._native import ffi, lib
from kvmgdb.linux.native import UnwindTables
from kvmgdb.machine.native import ERRORS, Memory, Paging
from kvmgdb.machine.sampling import SamplingPlan

KERNEL_SPACE = 0
RUNNING: int = lib.KVMGDB_SAMPLE_RUNNING
EXITED: int = lib.KVMGDB_SAMPLE_EXITED
HALTED: int = lib.KVMGDB_SAMPLE_HALTED
STOPPED: int = lib.KVMGDB_SAMPLE_STOPPED

_ROWS = 1024
_PLACES = 1024
_LAST = (1 << 64) - 1


def _check(status: int, error: Any) -> None:
    if status != lib.KVMGDB_OK:
        raise ERRORS[status](error)


class Row(NamedTuple):
    """A sample whose stack has been named: see ``struct kvmgdb_profiled``."""

    time_ns: int
    held_ns: int
    vcpu: int
    state: int
    stack: int
    task: int
    broken: bool
    end: int
    address: int
    ip: int
    cr3: int


class Place(NamedTuple):
    """An address without a name; ``space`` is KERNEL_SPACE, or one more than the
    number of the task in whose user mode it is."""

    space: int
    address: int


@dataclass(frozen=True)
class RawTask:
    """A task as it was sampled: where it lies, and the words that the plan named."""

    address: int
    words: tuple[int, ...]
    cr3: int


@dataclass(frozen=True)
class Taken:
    """What one call of :meth:`StackMaker.take` made of ``consumed`` bytes."""

    rows: list[Row]
    consumed: int
    places: list[Place]


class StackMaker:
    """Makes numbered stacks of numbered functions from records of samples."""

    def __init__(
        self,
        tables: UnwindTables | None,
        exited: int,
        kernel: bool = True,
        user: bool = True,
    ) -> None:
        """``exited`` is the number of the frame that stands for the VMM, which is on top
        of a stack while it handles an exit; ``kernel`` and ``user`` say which frames
        to keep. vCPUs that are halted or stopped have an empty stack."""
        out = ffi.new("struct kvmgdb_profile **")
        self._error = ffi.new("struct kvmgdb_error *")
        self._tables = tables
        flags = kernel * lib.KVMGDB_PROFILE_KERNEL | user * lib.KVMGDB_PROFILE_USER
        unwinder = ffi.NULL if tables is None else tables.native
        _check(
            lib.kvmgdb_profile_create(unwinder, flags, exited, out, self._error),
            self._error,
        )
        self._native: Any = ffi.gc(out[0], lib.kvmgdb_profile_destroy)
        self._rows = ffi.new("struct kvmgdb_profiled[]", _ROWS)
        self._places = ffi.new("struct kvmgdb_profile_place[]", _PLACES)
        self._sizes = ffi.new("size_t[3]")

    def take(self, records: memoryview | bytearray) -> Taken:
        """Takes records until there is an address without a name: :meth:`name` those
        and call again with what is left. Raises GuestDataError."""
        count, consumed, unknown = (self._sizes + i for i in range(3))
        _check(
            lib.kvmgdb_profile_take(
                self._native,
                ffi.from_buffer(records),
                len(records),
                self._rows,
                _ROWS,
                count,
                consumed,
                self._places,
                _PLACES,
                unknown,
                self._error,
            ),
            self._error,
        )
        rows = [
            Row(
                row.time_ns,
                row.held_ns,
                row.vcpu,
                row.state,
                row.stack,
                row.task,
                bool(row.broken),
                row.end,
                row.address,
                row.ip,
                row.cr3,
            )
            for row in self._rows[0 : count[0]]
        ]
        places = [Place(place.space, place.address) for place in self._places[0 : unknown[0]]]
        return Taken(rows, int(consumed[0]), places)

    def name(self, place: Place, code: range, frame: int, is_code: bool = True) -> None:
        """Code in the range ``code`` around a place, where it has no name yet, is in the
        function ``frame``. Where it cannot be code, stacks begin behind it."""
        place_of = ffi.new("struct kvmgdb_profile_place *", tuple(place))
        number = frame if is_code else frame | lib.KVMGDB_PROFILE_NOT_CODE
        stop = min(code.stop, _LAST)
        _check(
            lib.kvmgdb_profile_name(self._native, place_of, code.start, stop, number, self._error),
            self._error,
        )

    def renew(self, tables: UnwindTables, text: range) -> None:
        """Unwinds by ``tables`` from now on, and asks anew for the names of kernel code
        that is not in ``text``: modules have come or gone."""
        _check(
            lib.kvmgdb_profile_renew(
                self._native, tables.native, text.start, text.stop, self._error
            ),
            self._error,
        )
        self._tables = tables

    def stack(self, number: int) -> list[int]:
        """The numbers of a stack's functions, root first."""
        frames = ffi.new("uint32_t const **")
        count = ffi.new("size_t *")
        _check(
            lib.kvmgdb_profile_stack(self._native, number, frames, count, self._error),
            self._error,
        )
        return list(frames[0][0 : count[0]])

    def task(self, number: int) -> RawTask:
        address = ffi.new("uint64_t *")
        cr3 = ffi.new("uint64_t *")
        words = ffi.new("uint64_t[]", lib.KVMGDB_SAMPLE_WORDS)
        _check(
            lib.kvmgdb_profile_task(self._native, number, address, words, cr3, self._error),
            self._error,
        )
        return RawTask(address[0], tuple(words), cr3[0])


class SampleMaker:
    """Makes records from the registers and the memory of a vCPU that stands."""

    _CAPACITY = 128 << 10

    def __init__(self, plan: SamplingPlan) -> None:
        self._plan = plan
        self._sampling = ffi.new("struct kvmgdb_sampling *")
        self._sampling.kernel_cr3 = plan.kernel_cr3
        self._sampling.stack_size = plan.stack_size
        self._sampling.kernel_bytes = plan.kernel_bytes
        self._sampling.user_bytes = plan.user_bytes
        self._sampling.word_count = len(plan.task_words)
        self._sampling.area_count = len(plan.areas)
        self._sampling.stack_word = plan.stack_word
        self._sampling.word_offset[0 : len(plan.task_words)] = plan.task_words
        self._areas = ffi.new(
            "struct kvmgdb_stack_area[]",
            [(area.low, area.high, area.link) for area in plan.areas],
        )
        self._buffer = ffi.new("uint64_t[]", self._CAPACITY // 8)
        self._sample = ffi.cast("struct kvmgdb_sample *", self._buffer)
        self._error = ffi.new("struct kvmgdb_error *")

    def of_vcpu(
        self,
        memory: Memory,
        paging: Paging,
        vcpu: int,
        registers: dict[str, int],
        time_ns: int,
    ) -> bytearray:
        """``registers``: "ip", "sp", "bp", "ax", "dx", "di", "r10", "r13", "cx". The record
        has no time for which the vCPU was held: see :meth:`set_held`."""
        sample = self._clear(vcpu, RUNNING, time_ns)
        for name, value in registers.items():
            setattr(sample, name, value)
        sample.cr0, sample.cr3 = paging.cr0, paging.cr3
        pointers = self._plan.task_pointers
        _check(
            lib.kvmgdb_sample_fill(
                memory._native,
                paging.native,
                self._sampling,
                self._areas,
                pointers[vcpu] if vcpu < len(pointers) else 0,
                sample,
                self._CAPACITY,
                self._error,
            ),
            self._error,
        )
        return self._record()

    def of_state(self, vcpu: int, state: int, time_ns: int) -> bytearray:
        """The record of a vCPU that executes nothing."""
        self._clear(vcpu, state, time_ns)
        return self._record()

    @staticmethod
    def set_held(record: bytearray, held_ns: int) -> None:
        ffi.cast("struct kvmgdb_sample *", ffi.from_buffer(record)).held_ns = held_ns

    def _clear(self, vcpu: int, state: int, time_ns: int) -> Any:
        sample = self._sample
        size = ffi.sizeof("struct kvmgdb_sample")
        ffi.memmove(sample, bytes(size), size)
        sample.size, sample.vcpu, sample.state, sample.time_ns = size, vcpu, state, time_ns
        return sample

    def _record(self) -> bytearray:
        return bytearray(ffi.buffer(self._sample, self._sample.size))


def task_identity(words: Sequence[int]) -> tuple[int, int, str, int]:
    """PID of the thread, PID of its process, name and address of its mm, from the
    words that :data:`kvmgdb.profiler.plan.TASK_WORDS` names."""
    name = b"".join(word.to_bytes(8, "little") for word in words[1:3])
    text = name.partition(b"\0")[0].decode("utf-8", "backslashreplace")
    return words[0] & 0xFFFFFFFF, words[0] >> 32, text, words[3]
