"""The compiled library with Python types: guest memory, page walk, protocol text.

``native/include/kvmgdb/kvmgdb.h`` is its reference. Only this module and
:mod:`kvmgdb.linux.native` import the extension. Calls release the interpreter
lock. One :class:`Memory` may be read from several threads at once, but not while
its regions change.
"""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kvmgdb._native import ffi, lib
from kvmgdb.errors import (
    AccessDeniedError,
    GuestDataError,
    HostError,
    InvalidRangeError,
    KvmgdbError,
    MemoryFault,
    NoRamError,
    NotFoundError,
    ReadOnlyMemoryError,
    TargetGoneError,
)

_HEADERS = ("kvmgdb.h", "linux.h", "symbols.h", "sample.h", "profile.h")


def check_stamp(stamp: str, checkout: Path) -> None:
    """Raises HostError where the headers of a checkout are not those that the
    extension was compiled from, by their SHA-256. An installed package has none."""
    directory = checkout / "native" / "include" / "kvmgdb"
    try:
        headers = b"".join((directory / name).read_bytes() for name in _HEADERS)
    except OSError:
        return
    if stamp != hashlib.sha256(headers).hexdigest():
        raise HostError(
            f"the compiled extension is not of this checkout, {checkout}",
            remedy="compile it: `make setup`",
        )


_compiled_from = getattr(lib, "kvmgdb_headers", ffi.NULL)
check_stamp(
    ffi.string(_compiled_from).decode() if _compiled_from else "", Path(__file__).parents[2]
)

# What can be read from in place.
Bytes = bytes | bytearray | memoryview
ReadCallback = Callable[[int, int], bytes]
WriteCallback = Callable[[int, bytes], None]

# The most that one call reads (bytes): more is asked for in pieces.
MAX_LENGTH = 1 << 30
# Table entries that an iteration over extents looks at before it gives up, and
# in one call. A kernel's whole direct map and vmalloc space have some millions.
MAX_ENTRIES = 1 << 27
_ENTRIES_PER_CALL = 1 << 20

_ADDRESS_END = 1 << 64
# Memory that is about to be overwritten anyway.
_allocate = ffi.new_allocator(should_clear_after_alloc=False)


# ---- errors ---------------------------------------------------------------


def _invalid(error: Any) -> KvmgdbError:
    reasons = {errno.EEXIST: "overlaps another region", errno.ENOSPC: "is one region too many"}
    reason = reasons.get(error.os_error, "is out of bounds")
    return InvalidRangeError(f"the request at {error.address:#x} {reason}")


ERRORS: dict[int, Callable[[Any], KvmgdbError]] = {
    lib.KVMGDB_ERR_NO_MEMORY: lambda error: HostError("no memory for guest data", error.os_error),
    lib.KVMGDB_ERR_INVALID: _invalid,
    lib.KVMGDB_ERR_NOT_MAPPED: lambda error: MemoryFault(error.address, error.level, error.entry),
    lib.KVMGDB_ERR_NO_RAM: lambda error: NoRamError(error.address),
    lib.KVMGDB_ERR_GONE: lambda error: TargetGoneError(
        "the process that holds the guest's memory has exited"
    ),
    lib.KVMGDB_ERR_PERMISSION: lambda error: AccessDeniedError(
        "the host denies access to the guest's memory"
    ),
    lib.KVMGDB_ERR_READ_ONLY: lambda error: ReadOnlyMemoryError(error.address),
    lib.KVMGDB_ERR_IO: lambda error: HostError(
        f"cannot access guest memory at {error.address:#x}", error.os_error
    ),
    lib.KVMGDB_ERR_NOT_FOUND: lambda error: NotFoundError(
        f"there is nothing for {error.address:#x}"
    ),
    lib.KVMGDB_ERR_MALFORMED: lambda error: GuestDataError(
        f"the guest's data is damaged at offset {error.address:#x}"
    ),
}


class _Raised(threading.local):
    """What a callback of this thread raised, for the call that it served."""

    exception: BaseException | None = None


_raised = _Raised()


def _failure(status: int, error: Any) -> KvmgdbError | None:
    """The exception for a call's status, or None. What a callback raised is
    passed on: as it is, or as the cause of a HostError."""
    raised, _raised.exception = _raised.exception, None
    if raised is not None and not isinstance(raised, Exception):
        raise raised
    if status == lib.KVMGDB_OK:
        return None
    if isinstance(raised, KvmgdbError):
        return raised
    failure = ERRORS[status](error)
    failure.__cause__ = raised
    return failure


def _check(status: int, error: Any) -> None:
    failure = _failure(status, error)
    if failure is not None:
        raise failure


def _u64(value: int, name: str) -> int:
    if not 0 <= value < _ADDRESS_END:
        raise InvalidRangeError(f"{name} {value:#x} is not a 64-bit number")
    return value


def _bounded(length: int) -> int:
    if not 0 <= length <= MAX_LENGTH:
        raise InvalidRangeError(f"cannot read {length} bytes at once: at most {MAX_LENGTH}")
    return length


# ---- page tables ----------------------------------------------------------


class PagingMode(IntEnum):
    """How a vCPU translates; the value is the number of levels."""

    NONE = lib.KVMGDB_PAGING_NONE
    BITS32 = lib.KVMGDB_PAGING_32BIT
    PAE = lib.KVMGDB_PAGING_PAE
    LEVEL4 = lib.KVMGDB_PAGING_4LEVEL
    LEVEL5 = lib.KVMGDB_PAGING_5LEVEL


@dataclass(frozen=True)
class Paging:
    """The control registers of one vCPU that decide how it translates."""

    cr0: int
    cr3: int
    cr4: int
    efer: int

    @cached_property
    def native(self) -> Any:
        """The C structure."""
        return ffi.new(
            "struct kvmgdb_paging *",
            [
                _u64(self.cr0, "CR0"),
                _u64(self.cr3, "CR3"),
                _u64(self.cr4, "CR4"),
                _u64(self.efer, "EFER"),
            ],
        )

    @property
    def mode(self) -> PagingMode:
        return PagingMode(lib.kvmgdb_paging_mode(self.native))


@dataclass(frozen=True)
class Translation:
    """Where a guest-virtual address lies, and the entries that say so.

    ``entries`` are (guest-physical address of the entry, entry), root first;
    none without paging. ``page_size`` is in bytes.
    """

    gpa: int
    page_size: int
    mode: PagingMode
    entries: tuple[tuple[int, int], ...]
    writable: bool
    user: bool
    executable: bool


@dataclass(frozen=True)
class Extent:
    """A range of ``size`` bytes that is contiguous in both address spaces."""

    gva: int
    gpa: int
    size: int


# ---- guest memory ---------------------------------------------------------


@dataclass(frozen=True)
class _Callbacks:
    read: ReadCallback
    write: WriteCallback | None


def _keep(_type: object, exception: BaseException, _traceback: object) -> None:
    _raised.exception = exception


@ffi.def_extern(name="kvmgdb_python_read", error=-errno.EIO, onerror=_keep)  # type: ignore[untyped-decorator]
def _python_read(context: Any, gpa: int, buffer: Any, length: int) -> int:
    callbacks: _Callbacks = ffi.from_handle(context)
    try:
        data = callbacks.read(gpa, length)
    except (NoRamError, MemoryFault):
        return -errno.EFAULT  # the library looks for the first byte without RAM
    if len(data) > length:
        raise ValueError(f"a read of {length} bytes at {gpa:#x} returned {len(data)}")
    ffi.memmove(buffer, data, len(data))
    return 0 if len(data) == length else -errno.EFAULT


@ffi.def_extern(name="kvmgdb_python_write", error=-errno.EIO, onerror=_keep)  # type: ignore[untyped-decorator]
def _python_write(context: Any, gpa: int, buffer: Any, length: int) -> int:
    callbacks: _Callbacks = ffi.from_handle(context)
    assert callbacks.write is not None
    try:
        callbacks.write(gpa, bytes(ffi.buffer(buffer, length)))
    except (NoRamError, MemoryFault):
        return -errno.EFAULT
    return 0


class _Scratch:
    """A buffer that stays for the next call, and grows."""

    _KEPT = 64 << 20

    def __init__(self) -> None:
        self._buffer = ffi.NULL
        self._size = 0

    def reserve(self, size: int) -> Any:
        if size > self._KEPT:
            return _allocate("char[]", size)
        if size > self._size:
            self._size = 1 << (size - 1).bit_length()
            self._buffer = _allocate("char[]", self._size)
        return self._buffer


class Memory:
    """Guest-physical memory, and guest-virtual memory through page tables.

    ``pid`` is the process that :meth:`add_process` is about; 0 where none is
    needed. All addresses and lengths are bytes. Reading and writing raise
    MemoryFault, NoRamError, ReadOnlyMemoryError, TargetGoneError,
    AccessDeniedError, InvalidRangeError or HostError; the ``partial`` forms
    return the error beside what came before it.
    """

    def __init__(self, pid: int = 0) -> None:
        """Raises TargetGoneError or AccessDeniedError."""
        self._native = ffi.NULL
        self._handles: list[Any] = []
        self._lock = threading.Lock()
        self._data = _Scratch()
        self._frame = _Scratch()
        if not 0 <= pid < 1 << 31:
            raise InvalidRangeError(f"{pid} is not a process ID")
        out = ffi.new("struct kvmgdb_memory **")
        error = ffi.new("struct kvmgdb_error *")
        _check(lib.kvmgdb_memory_create(pid, out, error), error)
        self._native = ffi.gc(out[0], lib.kvmgdb_memory_destroy)

    @property
    def native(self) -> Any:
        """The C structure."""
        return self._native

    def close(self) -> None:
        """Gives up the process and the files. Idempotent; other calls raise
        InvalidRangeError from now on."""
        native, self._native = self._native, ffi.NULL
        if native != ffi.NULL:
            ffi.release(native)
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- regions

    def add_process(self, gpa: int, size: int, hva: int, read_only: bool = False) -> None:
        """``size`` bytes at ``gpa`` lie at ``hva`` in the process."""
        error = ffi.new("struct kvmgdb_error *")
        _check(
            lib.kvmgdb_memory_add_process(
                self._native,
                _u64(gpa, "address"),
                _u64(size, "size"),
                _u64(hva, "host address"),
                read_only,
                error,
            ),
            error,
        )

    def add_file(
        self, gpa: int, size: int, fd: int, offset: int = 0, read_only: bool = False
    ) -> None:
        """``size`` bytes at ``gpa`` lie at ``offset`` of a file, whose descriptor
        is duplicated. Read-only as well where the descriptor is."""
        error = ffi.new("struct kvmgdb_error *")
        _check(
            lib.kvmgdb_memory_add_file(
                self._native,
                _u64(gpa, "address"),
                _u64(size, "size"),
                fd,
                _u64(offset, "offset"),
                read_only,
                error,
            ),
            error,
        )

    def add_callback(
        self, gpa: int, size: int, read: ReadCallback, write: WriteCallback | None = None
    ) -> None:
        """``size`` bytes at ``gpa`` come from ``read(gpa, length)`` and go to
        ``write(gpa, data)``. NoRamError, MemoryFault and a short answer mean
        that there is no RAM; other errors come out of the call they failed."""
        handle = ffi.new_handle(_Callbacks(read, write))
        error = ffi.new("struct kvmgdb_error *")
        _check(
            lib.kvmgdb_memory_add_callback(
                self._native,
                _u64(gpa, "address"),
                _u64(size, "size"),
                lib.kvmgdb_python_read,
                lib.kvmgdb_python_write if write else ffi.NULL,
                handle,
                error,
            ),
            error,
        )
        self._handles.append(handle)

    @property
    def asks_for_each_read(self) -> bool:
        """Whether some of it is read by asking somebody, a piece at a time: slowly."""
        return bool(self._handles)

    def clear(self) -> None:
        """Removes all regions."""
        lib.kvmgdb_memory_clear(self._native)
        self._handles.clear()

    # -- guest-physical

    def read_partial(self, gpa: int, length: int) -> tuple[bytes, KvmgdbError | None]:
        buffer = _allocate("char[]", _bounded(length))
        done = ffi.new("size_t *")
        error = ffi.new("struct kvmgdb_error *")
        status = lib.kvmgdb_memory_read(
            self._native, _u64(gpa, "address"), buffer, length, done, error
        )
        return bytes(ffi.buffer(buffer, done[0])), _failure(status, error)

    def read(self, gpa: int, length: int) -> bytes:
        return _whole(self.read_partial(gpa, length))

    def write(self, gpa: int, data: Bytes) -> None:
        """Bytes before the one that the error names have been written."""
        error = ffi.new("struct kvmgdb_error *")
        source = ffi.from_buffer(data)
        status = lib.kvmgdb_memory_write(
            self._native, _u64(gpa, "address"), source, len(source), ffi.NULL, error
        )
        _check(status, error)

    # -- guest-virtual

    def translate(self, paging: Paging, gva: int) -> Translation:
        result = ffi.new("struct kvmgdb_translation *")
        error = ffi.new("struct kvmgdb_error *")
        _check(
            lib.kvmgdb_translate(self._native, paging.native, _u64(gva, "address"), result, error),
            error,
        )
        return Translation(
            gpa=result.gpa,
            page_size=result.page_size,
            mode=PagingMode(result.mode),
            entries=tuple((result.entry_gpa[i], result.entry[i]) for i in range(result.levels)),
            writable=bool(result.writable),
            user=bool(result.user),
            executable=bool(result.executable),
        )

    def read_virtual_partial(
        self, paging: Paging, gva: int, length: int
    ) -> tuple[bytes, KvmgdbError | None]:
        buffer = _allocate("char[]", _bounded(length))
        done, failure = self._read_virtual_into(paging, gva, buffer, length)
        return bytes(ffi.buffer(buffer, done)), failure

    def read_virtual(self, paging: Paging, gva: int, length: int) -> bytes:
        return _whole(self.read_virtual_partial(paging, gva, length))

    def write_virtual(self, paging: Paging, gva: int, data: Bytes) -> None:
        """Bytes before the one that the error names have been written. The
        page tables' own write protection is passed over."""
        error = ffi.new("struct kvmgdb_error *")
        source = ffi.from_buffer(data)
        status = lib.kvmgdb_virtual_write(
            self._native,
            paging.native,
            _u64(gva, "address"),
            source,
            len(source),
            ffi.NULL,
            error,
        )
        _check(status, error)

    def frame_virtual(
        self, paging: Paging, gva: int, length: int, binary: bool, prefix: bytes = b""
    ) -> tuple[bytes, int, KvmgdbError | None]:
        """A frame of the remote protocol with ``prefix`` and guest-virtual memory,
        escaped or as hex digits, run-length encoded, which is no Python object
        on its way. Also returns how many bytes it holds and why they are fewer than asked for."""
        with self._lock:
            data = self._data.reserve(_bounded(length))
            done, failure = self._read_virtual_into(paging, gva, data, length)
            frame = self._frame.reserve(len(prefix) + 2 * done + 4)
            encode = lib.kvmgdb_rsp_frame_binary if binary else lib.kvmgdb_rsp_frame_hex
            size = encode(prefix, len(prefix), data, done, True, frame)
            return bytes(ffi.buffer(frame, size)), done, failure

    def next_extent(
        self, paging: Paging, start: int, end: int, budget: int = _ENTRIES_PER_CALL
    ) -> tuple[Extent | None, int, bool]:
        """The first extent in [start, end), where to go on, and whether ``end``
        was reached. ``budget`` is about how many table entries are looked at;
        an ``end`` of 0 is that of the address space."""
        gva, gpa, size, following = (ffi.new("uint64_t *") for _ in range(4))
        ended = ffi.new("int *")
        error = ffi.new("struct kvmgdb_error *")
        status = lib.kvmgdb_next_extent(
            self._native,
            paging.native,
            _u64(start, "address"),
            _u64(end, "address"),
            _u64(budget, "budget"),
            gva,
            gpa,
            size,
            following,
            ended,
            error,
        )
        _check(status, error)
        found = Extent(gva[0], gpa[0], size[0]) if size[0] else None
        return found, following[0], bool(ended[0])

    def extents(self, paging: Paging, start: int, end: int) -> Iterator[Extent]:
        """What is mapped in [start, end), lowest address first. Raises
        InvalidRangeError where the tables are too large to be meant so."""
        kept: Extent | None = None
        entries = 0
        done = False
        while not done:
            if entries >= MAX_ENTRIES:
                raise InvalidRangeError(
                    f"page tables below {start:#x} have more than {MAX_ENTRIES} entries"
                )
            found, start, done = self.next_extent(paging, start, end)
            # Not counted: how many of the call's entries were used.
            entries += _ENTRIES_PER_CALL if found is None else found.size >> 12
            if found is None:
                continue
            if kept and (kept.gva + kept.size, kept.gpa + kept.size) == (found.gva, found.gpa):
                kept = Extent(kept.gva, kept.gpa, kept.size + found.size)
                continue
            if kept:
                yield kept
            kept = found
        if kept:
            yield kept

    def search_virtual(
        self, paging: Paging, start: int, end: int, pattern: bytes, budget: int
    ) -> tuple[int | None, int, bool]:
        """One slice of a search for ``pattern`` (1 to 65536 bytes) in [start, end),
        which reads about ``budget`` bytes: (address of the first match or None,
        where to go on, whether ``end`` was reached). An ``end`` of 0 is that of
        the address space. What is not mapped is passed over."""
        found, ended = ffi.new("int *"), ffi.new("int *")
        match, following = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        error = ffi.new("struct kvmgdb_error *")
        status = lib.kvmgdb_virtual_search(
            self._native,
            paging.native,
            _u64(start, "address"),
            _u64(end, "address"),
            ffi.from_buffer(pattern),
            len(pattern),
            _u64(budget, "budget"),
            found,
            match,
            following,
            ended,
            error,
        )
        _check(status, error)
        return match[0] if found[0] else None, following[0], bool(ended[0])

    def _read_virtual_into(
        self, paging: Paging, gva: int, buffer: Any, length: int
    ) -> tuple[int, KvmgdbError | None]:
        done = ffi.new("size_t *")
        error = ffi.new("struct kvmgdb_error *")
        status = lib.kvmgdb_virtual_read(
            self._native, paging.native, _u64(gva, "address"), buffer, length, done, error
        )
        return done[0], _failure(status, error)


def _whole(result: tuple[bytes, KvmgdbError | None]) -> bytes:
    data, failure = result
    if failure is not None:
        raise failure
    return data


# ---- remote protocol ------------------------------------------------------


def rsp_checksum(data: Bytes) -> int:
    """Sum of all bytes, modulo 256."""
    source = ffi.from_buffer(data)
    return int(lib.kvmgdb_rsp_checksum(source, len(source)))


def rsp_crc(crc: int, data: Bytes) -> int:
    """The CRC of ``qCRC``, continued: start with 0xffffffff."""
    source = ffi.from_buffer(data)
    return int(lib.kvmgdb_rsp_crc(crc, source, len(source)))


def rsp_frame(payload: bytes, binary: bool, runs: bool) -> bytes:
    """``$payload#cc``, with escapes where ``binary``, else run-length encoded
    where ``runs``. Raises ValueError where the payload needs escapes and
    ``binary`` is not set."""
    out = _allocate("char[]", 2 * len(payload) + 4)
    size = lib.kvmgdb_rsp_frame(ffi.from_buffer(payload), len(payload), binary, runs, out)
    if not size:
        raise ValueError(f"the payload needs escapes: {payload[:40]!r}")
    return bytes(ffi.buffer(out, size))


def rsp_frame_hex(prefix: bytes, data: Bytes, runs: bool) -> bytes:
    """A frame with ``prefix`` as it is and ``data`` as hex digits, run-length
    encoded where ``runs``."""
    return _frame(lib.kvmgdb_rsp_frame_hex, prefix, data, runs)


def rsp_frame_binary(prefix: bytes, data: Bytes, runs: bool) -> bytes:
    """A frame with ``prefix`` as it is and ``data`` escaped, run-length encoded
    where ``runs``."""
    return _frame(lib.kvmgdb_rsp_frame_binary, prefix, data, runs)


def _frame(encode: Any, prefix: bytes, data: Bytes, runs: bool) -> bytes:
    source = ffi.from_buffer(data)
    out = _allocate("char[]", len(prefix) + 2 * len(source) + 4)
    size = encode(prefix, len(prefix), source, len(source), runs, out)
    return bytes(ffi.buffer(out, size))


# "*~" after a byte is 97 more of it, and another "*~" may follow; no reply is
# that long.
_LONGEST_RUN = 97
_MAX_UNESCAPED = 256 << 20


def rsp_unescape(payload: bytes, runs: bool) -> bytes:
    """The payload of a frame without its escapes and, where ``runs``, its run
    lengths. Raises InvalidRangeError where one is cut off or is none."""
    capacity = len(payload)
    if runs and b"*" in payload:
        capacity = max(capacity, min(capacity * _LONGEST_RUN, _MAX_UNESCAPED))
    out = _allocate("char[]", capacity)
    size = ffi.new("size_t *")
    error = ffi.new("struct kvmgdb_error *")
    status = lib.kvmgdb_rsp_unescape(
        ffi.from_buffer(payload), len(payload), runs, out, capacity, size, error
    )
    if status == lib.KVMGDB_ERR_INVALID:
        raise InvalidRangeError(f"the payload is malformed at byte {error.address}")
    _check(status, error)
    return bytes(ffi.buffer(out, size[0]))
