"""``native/include/kvmgdb/symbols.h`` with Python types."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from kvmgdb._native import ffi, lib
from kvmgdb.linux.native import SymbolTable
from kvmgdb.machine.native import ERRORS


class Section(IntEnum):
    """The sections that are made natively."""

    SYMTAB = lib.KVMGDB_DEBUG_SYMTAB
    STRTAB = lib.KVMGDB_DEBUG_STRTAB
    INFO = lib.KVMGDB_DEBUG_INFO
    ABBREV = lib.KVMGDB_DEBUG_ABBREV
    STR = lib.KVMGDB_DEBUG_STR
    ARANGES = lib.KVMGDB_DEBUG_ARANGES
    LOC = lib.KVMGDB_DEBUG_LOC
    FRAME = lib.KVMGDB_DEBUG_FRAME


class DebugSections:
    """The sections of one file, made step by step. Each step raises GuestDataError
    where the guest's data cannot be what it claims to be."""

    def __init__(self, areas: Sequence[tuple[range, bool]]) -> None:
        """``areas``: addresses that the file describes, and whether they hold code;
        by rising address, without overlap."""
        native = ffi.new("struct kvmgdb_debug_area[]", len(areas))
        for out, (addresses, executable) in zip(native, areas, strict=True):
            out.start, out.end = addresses.start, addresses.stop
            out.executable = executable
        out = ffi.new("struct kvmgdb_debug **")
        self._error = ffi.new("struct kvmgdb_error *")
        self._check(lib.kvmgdb_debug_create(native, len(areas), out, self._error))
        self._native: Any = ffi.gc(out[0], lib.kvmgdb_debug_destroy)

    def _check(self, status: int) -> None:
        if status != lib.KVMGDB_OK:
            raise ERRORS[status](self._error)

    def add_symbols(self, symbols: SymbolTable) -> int:
        """SYMTAB and STRTAB; the last step. Returns how many symbols come before the
        first that is not local."""
        local = ffi.new("uint32_t *")
        self._check(lib.kvmgdb_debug_add_symbols(self._native, symbols.native, local, self._error))
        return int(local[0])

    def section(self, which: Section) -> memoryview:
        """What is there of a section. Valid until it is made again, and as long as
        this object."""
        length = ffi.new("size_t *")
        data = lib.kvmgdb_debug_section(self._native, which, length)
        if length[0] == 0:
            return memoryview(b"")
        return memoryview(ffi.buffer(data, length[0]))
