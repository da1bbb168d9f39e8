"""``native/include/kvmgdb/symbols.h`` with Python types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from kvmgdb._native import ffi, lib
from kvmgdb.linux.native import BtfTable, SymbolTable, UnwindTables
from kvmgdb.machine.native import ERRORS


class Section(IntEnum):
    """The sections that are made natively."""

    SYMTAB = lib.KVMGDB_DEBUG_SYMTAB
    STRTAB = lib.KVMGDB_DEBUG_STRTAB
    INFO = lib.KVMGDB_DEBUG_INFO
    ABBREV = lib.KVMGDB_DEBUG_ABBREV
    STR = lib.KVMGDB_DEBUG_STR
    ARANGES = lib.KVMGDB_DEBUG_ARANGES
    LOCLISTS = lib.KVMGDB_DEBUG_LOCLISTS
    FRAME = lib.KVMGDB_DEBUG_FRAME


@dataclass(frozen=True)
class Variable:
    """A variable at ``address`` (GVA): of the type with this ID (0 is void), or a
    pointer to it, or an array of either; ``elements`` None is no array, and 0 one of
    unknown length."""

    name: str
    address: int
    type: int
    pointer: bool = False
    elements: int | None = None


class RuleKind(IntEnum):
    """Code that the unwind table has no rule for, as ``kvmgdb_debug_rule_kind``."""

    CALL = lib.KVMGDB_RULE_CALL
    CALL_ALWAYS = lib.KVMGDB_RULE_CALL_ALWAYS
    CALLS_ITSELF = lib.KVMGDB_RULE_CALLS_ITSELF
    SYSCALL = lib.KVMGDB_RULE_SYSCALL
    IRET = lib.KVMGDB_RULE_IRET


@dataclass(frozen=True)
class CodeRule:
    """What ``code`` (GVA) is. The return address of a call, or of code that calls
    itself, lies ``cfa_offset`` - 8 bytes above the stack pointer."""

    code: range
    kind: RuleKind = RuleKind.CALL
    cfa_offset: int = 0


@dataclass(frozen=True)
class PerCpu:
    """``table``: where __per_cpu_offset lies (GVA), which has ``cpus`` elements;
    ``start``: the value of the section's first symbol."""

    table: int
    start: int
    cpus: int


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

    def add_frames(
        self,
        tables: UnwindTables,
        symbols: SymbolTable,
        rules: Sequence[CodeRule] = (),
        user_mode: bool = False,
    ) -> None:
        """FRAME; the first step. ``rules`` by rising address; with ``user_mode`` the
        file says also that a chain of frames ends in user mode."""
        native = ffi.new("struct kvmgdb_debug_rule[]", len(rules))
        for out, rule in zip(native, rules, strict=True):
            out.start, out.end = rule.code.start, rule.code.stop
            out.kind = rule.kind
            out.cfa_offset = rule.cfa_offset
        self._check(
            lib.kvmgdb_debug_add_frames(
                self._native,
                tables.native,
                symbols.native,
                native,
                len(rules),
                user_mode,
                self._error,
            )
        )

    def add_types(
        self,
        types: BtfTable,
        symbols: SymbolTable,
        producer: str,
        name: str,
        variables: Sequence[Variable] = (),
        per_cpu: PerCpu | None = None,
        static_calls_follow_abi: bool = False,
    ) -> None:
        """INFO, ABBREV, STR, ARANGES and LOCLISTS: types, functions, variables.
        ``producer`` and ``name`` say what made the code, and of what.
        ``static_calls_follow_abi``: the compiler passes arguments in the registers of
        the ABI also to functions that are not global."""
        names = [ffi.new("char[]", variable.name.encode()) for variable in variables]
        native = ffi.new("struct kvmgdb_debug_variable[]", len(variables))
        for out, text, variable in zip(native, names, variables, strict=True):
            out.name = text
            out.address = variable.address
            out.type = variable.type
            out.is_pointer = variable.pointer
            out.is_array = variable.elements is not None
            out.elements = variable.elements or 0
        area = ffi.NULL
        if per_cpu is not None:
            area = ffi.new(
                "struct kvmgdb_debug_percpu *",
                {"table": per_cpu.table, "start": per_cpu.start, "cpus": per_cpu.cpus},
            )
        self._check(
            lib.kvmgdb_debug_add_types(
                self._native,
                types.native,
                symbols.native,
                producer.encode(),
                name.encode(),
                native,
                len(variables),
                area,
                static_calls_follow_abi,
                self._error,
            )
        )

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
