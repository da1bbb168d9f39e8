"""``native/include/kvmgdb/linux.h`` with Python types: symbols, BTF, unwinding.

Works on copies of guest memory (bytes); raises NotFoundError for what is not
there and GuestDataError for what cannot be what it claims to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from kvmgdb._native import ffi, lib
from kvmgdb.errors import GuestDataError, NotFoundError
from kvmgdb.machine.native import ERRORS

MAX_FRAMES = 512
_LAST_ADDRESS = (1 << 64) - 1


def _check(status: int, error: Any) -> None:
    if status != lib.KVMGDB_OK:
        raise ERRORS[status](error)


def _address(value: int) -> int:
    """An address that guest data led to. Raises GuestDataError beyond 64 bits."""
    if not 0 <= value <= _LAST_ADDRESS:
        raise GuestDataError(f"{value:#x} is no address")
    return value


def _text(value: Any) -> str:
    return bytes(ffi.string(value)).decode("utf-8", "backslashreplace")


# ---- symbols ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol at ``address`` (GVA, or an offset for per-CPU ones before 6.15);
    ``type`` is nm's letter. ``index`` is its place in its table."""

    address: int
    type: str
    name: str
    index: int


@dataclass(frozen=True)
class Kallsyms:
    """How a kernel's own table was found: addresses (GVA) of its parts.

    ``encoding`` is "absolute per-CPU", "base-relative" or "place-relative".
    """

    num_syms: int
    names: int
    markers: int
    token_table: int
    token_index: int
    offsets: int
    relative_base: int
    encoding: str


_ENCODINGS = {
    lib.KVMGDB_KALLSYMS_ABSOLUTE_PERCPU: "absolute per-CPU",
    lib.KVMGDB_KALLSYMS_BASE_RELATIVE: "base-relative",
    lib.KVMGDB_KALLSYMS_PLACE_RELATIVE: "place-relative",
}


class SymbolTable:
    """Symbols by rising address."""

    def __init__(self, native: Any) -> None:
        self.native = ffi.gc(native, lib.kvmgdb_symbols_destroy)

    @classmethod
    def from_kallsyms(
        cls, image: bytes | bytearray, address: int, base: int
    ) -> tuple[SymbolTable, Kallsyms]:
        """Finds and decodes the kernel's symbols in ``image``, a copy of guest
        memory from ``address`` on; ``base`` is where the kernel begins."""
        out = ffi.new("struct kvmgdb_symbols **")
        error = ffi.new("struct kvmgdb_error *")
        found = ffi.new("struct kvmgdb_kallsyms *")
        _check(
            lib.kvmgdb_symbols_from_kallsyms(
                ffi.from_buffer(image), len(image), address, base, found, out, error
            ),
            error,
        )
        table = cls(out[0])
        return table, Kallsyms(
            num_syms=found.num_syms,
            names=address + found.names,
            markers=address + found.markers,
            token_table=address + found.token_table,
            token_index=address + found.token_index,
            offsets=address + found.offsets,
            relative_base=found.relative_base,
            encoding=_ENCODINGS[found.encoding],
        )

    @classmethod
    def from_elf(cls, symtab: bytes, strings: bytes, types: bytes) -> SymbolTable:
        """The symbols of a module: Elf64_Sym, their names, a type letter each."""
        out = ffi.new("struct kvmgdb_symbols **")
        error = ffi.new("struct kvmgdb_error *")
        count = len(symtab) // 24
        letters = ffi.from_buffer(types) if len(types) >= count else ffi.NULL
        _check(
            lib.kvmgdb_symbols_from_elf(
                ffi.from_buffer(symtab),
                count,
                ffi.from_buffer(strings),
                len(strings),
                letters,
                out,
                error,
            ),
            error,
        )
        return cls(out[0])

    def __len__(self) -> int:
        return int(lib.kvmgdb_symbols_count(self.native))

    def __getitem__(self, index: int) -> Symbol:
        symbol = ffi.new("struct kvmgdb_symbol *")
        if index < 0 or lib.kvmgdb_symbols_get(self.native, index, symbol, ffi.NULL):
            raise IndexError(index)
        return _symbol(symbol)

    def __iter__(self) -> Iterator[Symbol]:
        symbol = ffi.new("struct kvmgdb_symbol *")
        for index in range(len(self)):
            lib.kvmgdb_symbols_get(self.native, index, symbol, ffi.NULL)
            yield _symbol(symbol)

    def size_of(self, index: int) -> int:
        """Bytes to the next symbol at another address; 0 for the last."""
        address = self[index].address
        for following in range(index + 1, len(self)):
            if self[following].address != address:
                return self[following].address - address
        return 0

    def at(self, address: int) -> Symbol | None:
        """The last symbol at or below ``address``."""
        symbol = ffi.new("struct kvmgdb_symbol *")
        if lib.kvmgdb_symbols_at(self.native, _address(address), symbol, ffi.NULL):
            return None
        return _symbol(symbol)

    def named(self, name: str) -> Iterator[Symbol]:
        """All symbols of that name, by rising address."""
        index = ffi.new("size_t *")
        symbol = ffi.new("struct kvmgdb_symbol *")
        text = name.encode("utf-8", "surrogateescape")
        while not lib.kvmgdb_symbols_named(self.native, text, index, symbol, ffi.NULL):
            yield _symbol(symbol)

    def address(self, name: str) -> int | None:
        """The address of the first symbol of that name."""
        return next((symbol.address for symbol in self.named(name)), None)


def _symbol(symbol: Any) -> Symbol:
    letter = symbol.type.decode("ascii", "replace")
    return Symbol(symbol.address, letter, _text(symbol.name), symbol.index)


# ---- BTF ----------------------------------------------------------------------


class Kind(IntEnum):
    """The kinds of types that BTF has (include/uapi/linux/btf.h)."""

    VOID = lib.KVMGDB_BTF_VOID
    INT = lib.KVMGDB_BTF_INT
    PTR = lib.KVMGDB_BTF_PTR
    ARRAY = lib.KVMGDB_BTF_ARRAY
    STRUCT = lib.KVMGDB_BTF_STRUCT
    UNION = lib.KVMGDB_BTF_UNION
    ENUM = lib.KVMGDB_BTF_ENUM
    FWD = lib.KVMGDB_BTF_FWD
    TYPEDEF = lib.KVMGDB_BTF_TYPEDEF
    VOLATILE = lib.KVMGDB_BTF_VOLATILE
    CONST = lib.KVMGDB_BTF_CONST
    RESTRICT = lib.KVMGDB_BTF_RESTRICT
    FUNC = lib.KVMGDB_BTF_FUNC
    FUNC_PROTO = lib.KVMGDB_BTF_FUNC_PROTO
    VAR = lib.KVMGDB_BTF_VAR
    DATASEC = lib.KVMGDB_BTF_DATASEC
    FLOAT = lib.KVMGDB_BTF_FLOAT
    DECL_TAG = lib.KVMGDB_BTF_DECL_TAG
    TYPE_TAG = lib.KVMGDB_BTF_TYPE_TAG
    ENUM64 = lib.KVMGDB_BTF_ENUM64


@dataclass(frozen=True, slots=True)
class Type:
    """One type: see ``struct kvmgdb_btf_type`` for which fields a kind has.

    ``size`` is in bytes, ``target`` the ID of the type that it refers to,
    ``count`` the number of members, values, parameters or elements.
    """

    id: int
    kind: Kind
    name: str
    size: int
    target: int
    count: int
    kind_flag: bool
    signed: bool
    char: bool
    bool: bool
    bits: int
    bit_offset: int
    linkage: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member, parameter, or variable of a section; ``bit_offset`` counts from
    the start of the outermost type, ``bits`` is not 0 in a bit field."""

    name: str
    type: int
    bit_offset: int
    bits: int
    size: int

    @property
    def offset(self) -> int:
        """In bytes, rounded down."""
        return self.bit_offset // 8


class BtfTable:
    """The types of a kernel, or with ``base`` those of a module."""

    def __init__(self, data: bytes, base: BtfTable | None = None) -> None:
        """Raises GuestDataError, also for a ``base`` that is cut off."""
        out = ffi.new("struct kvmgdb_btf **")
        error = ffi.new("struct kvmgdb_error *")
        native_base: Any = base.native if base else ffi.NULL
        if base is not None and base.unknown_kind:
            raise GuestDataError(
                f"the kernel's BTF, which this refers to, has types of kind {base.unknown_kind}"
            )
        _check(
            lib.kvmgdb_btf_create(ffi.from_buffer(data), len(data), native_base, out, error),
            error,
        )
        self.base = base
        self.native: Any = ffi.gc(out[0], lib.kvmgdb_btf_destroy)

    @property
    def unknown_kind(self) -> int:
        """The number of the kind of type that the table is cut off for, because only a
        newer kvmgdb knows how long one is; 0 where it is whole."""
        return int(lib.kvmgdb_btf_unknown_kind(self.native))

    @property
    def ids(self) -> range:
        """The IDs of its own types, without those of the base."""
        return range(lib.kvmgdb_btf_start(self.native), lib.kvmgdb_btf_end(self.native))

    def type(self, type_id: int) -> Type:
        out = ffi.new("struct kvmgdb_btf_type *")
        error = ffi.new("struct kvmgdb_error *")
        _check(lib.kvmgdb_btf_type(self.native, type_id, out, error), error)
        return _type(out)

    def strip(self, type_id: int) -> Type:
        """What is behind typedefs, qualifiers and tags."""
        out = ffi.new("struct kvmgdb_btf_type *")
        error = ffi.new("struct kvmgdb_error *")
        _check(lib.kvmgdb_btf_strip(self.native, type_id, out, error), error)
        return _type(out)

    def find(self, name: str, *kinds: Kind) -> Type | None:
        """The first type of that name and one of these kinds."""
        out = ffi.new("uint32_t *")
        mask = sum(1 << kind for kind in kinds)
        text = name.encode("utf-8", "surrogateescape")
        if lib.kvmgdb_btf_find(self.native, text, mask, out, ffi.NULL):
            return None
        return self.type(out[0])

    def size(self, type_id: int) -> int:
        """In bytes. Raises GuestDataError for a type that has no size."""
        out = ffi.new("uint64_t *")
        error = ffi.new("struct kvmgdb_error *")
        _check(lib.kvmgdb_btf_size(self.native, type_id, out, error), error)
        return int(out[0])

    def member(self, type_id: int, index: int) -> Member:
        out = ffi.new("struct kvmgdb_btf_member *")
        error = ffi.new("struct kvmgdb_error *")
        _check(lib.kvmgdb_btf_member(self.native, type_id, index, out, error), error)
        return _member(out)

    def members(self, type_id: int) -> Iterator[Member]:
        for index in range(self.type(type_id).count):
            yield self.member(type_id, index)

    def find_member(self, type_id: int, name: str) -> Member | None:
        """The member of that name, also in anonymous structures and unions."""
        out = ffi.new("struct kvmgdb_btf_member *")
        error = ffi.new("struct kvmgdb_error *")
        try:
            text = name.encode("utf-8", "surrogateescape")
            _check(lib.kvmgdb_btf_find_member(self.native, type_id, text, out, error), error)
        except NotFoundError:
            return None
        return _member(out)

    def values(self, type_id: int) -> Iterator[tuple[str, int]]:
        """Names and values of an enumeration."""
        out = ffi.new("struct kvmgdb_btf_value *")
        error = ffi.new("struct kvmgdb_error *")
        listed = self.type(type_id)
        for index in range(listed.count):
            _check(lib.kvmgdb_btf_value(self.native, type_id, index, out, error), error)
            signed = listed.kind is Kind.ENUM or listed.signed
            yield _text(out.name), out.value if signed else out.value & (1 << 64) - 1


def _type(out: Any) -> Type:
    return Type(
        out.id,
        Kind(out.kind),
        _text(out.name),
        out.size,
        out.target,
        out.count,
        bool(out.kind_flag),
        bool(out.is_signed),
        bool(out.is_char),
        bool(out.is_bool),
        out.bits,
        out.bit_offset,
        out.linkage,
    )


def _member(out: Any) -> Member:
    return Member(_text(out.name), out.type, out.bit_offset, out.bits, out.size)


# ---- unwinding ------------------------------------------------------------------


@dataclass(frozen=True)
class OrcLayout:
    """``struct orc_entry``: its size in bytes, and (bit offset, bits) of its
    fields; (0, 0) for one that it does not have.

    ``undefined_first``: type 0 is "undefined" and not "call".
    """

    entry_size: int
    fields: dict[str, tuple[int, int]]
    undefined_first: bool


class FrameSource(IntEnum):
    """How a frame was found."""

    REGISTERS = lib.KVMGDB_FRAME_REGISTERS
    ORC = lib.KVMGDB_FRAME_ORC
    ENTRY = lib.KVMGDB_FRAME_ENTRY
    FRAME_POINTER = lib.KVMGDB_FRAME_POINTER
    USER_REGISTERS = lib.KVMGDB_FRAME_USER_REGISTERS
    STACK_TOP = lib.KVMGDB_FRAME_STACK_TOP


class UnwindEnd(IntEnum):
    """Why a stack has no more frames."""

    COMPLETE = lib.KVMGDB_UNWIND_COMPLETE
    USER = lib.KVMGDB_UNWIND_USER
    NEED_STACK = lib.KVMGDB_UNWIND_NEED_STACK
    NO_TABLE = lib.KVMGDB_UNWIND_NO_TABLE
    UNDEFINED = lib.KVMGDB_UNWIND_UNDEFINED
    NO_REGISTER = lib.KVMGDB_UNWIND_NO_REGISTER
    LOOP = lib.KVMGDB_UNWIND_LOOP
    FULL = lib.KVMGDB_UNWIND_FULL
    NO_ENTRY = lib.KVMGDB_UNWIND_NO_ENTRY


class Code(IntEnum):
    """Code that unwind tables leave out: see enum kvmgdb_code."""

    THUNK = lib.KVMGDB_CODE_THUNK
    SYSCALL = lib.KVMGDB_CODE_SYSCALL
    IRET = lib.KVMGDB_CODE_IRET
    COPY = lib.KVMGDB_CODE_COPY
    CALLS_ITSELF = lib.KVMGDB_CODE_CALLS_ITSELF


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. ``exact``: ``ip`` is where it was interrupted, not behind a call.
    ``registers`` is the address of the registers saved at an entry, or 0."""

    ip: int
    sp: int
    bp: int | None
    source: FrameSource
    exact: bool
    registers: int


@dataclass(frozen=True)
class Unwound:
    """Frames, innermost first, and why there are no more; ``address`` is that of
    the stack or instruction where the chain broke."""

    frames: tuple[Frame, ...]
    end: UnwindEnd
    address: int


REGISTERS = ("ip", "sp", "bp", "ax", "dx", "di", "r10", "r13", "cx")


@dataclass(frozen=True)
class StackCopy:
    """A copy of guest memory from ``address`` on."""

    address: int
    data: bytes


class UnwindTables:
    """The unwind tables of a kernel and its modules. ``numbering`` says how their
    registers are numbered: enum kvmgdb_orc_registers."""

    def __init__(self) -> None:
        self.numbering: int = lib.KVMGDB_ORC_REGISTERS_DETECT
        out = ffi.new("struct kvmgdb_unwinder **")
        error = ffi.new("struct kvmgdb_error *")
        _check(lib.kvmgdb_unwinder_create(out, error), error)
        self.native: Any = ffi.gc(out[0], lib.kvmgdb_unwinder_destroy)

    def add(
        self, code: range, ip_address: int, ips: bytes, entries: bytes, layout: OrcLayout
    ) -> None:
        """The table of ``code`` (GVAs): place-relative addresses, of which the first
        lies at ``ip_address``, and as many entries. The first table added decides
        how registers are numbered."""
        native = ffi.new("struct kvmgdb_orc_layout *")
        native.entry_size = layout.entry_size
        for name, place in layout.fields.items():
            getattr(native, name).bit_offset, getattr(native, name).bits = place
        native.types = (
            lib.KVMGDB_ORC_TYPES_UNDEFINED_FIRST
            if layout.undefined_first
            else lib.KVMGDB_ORC_TYPES_CALL_FIRST
        )
        native.registers = self.numbering
        count = min(len(ips) // 4, len(entries) // layout.entry_size)
        error = ffi.new("struct kvmgdb_error *")
        status = lib.kvmgdb_unwinder_add(
            self.native,
            _address(code.start),
            _address(code.stop),
            _address(ip_address),
            ffi.from_buffer(ips),
            ffi.from_buffer(entries),
            count,
            native,
            error,
        )
        _check(status, error)
        self.numbering = native.registers

    def mark(self, code: range, what: Code, detail: int = 0) -> None:
        """Says what ``code`` (GVAs) is, of which no table has a rule; ``detail`` as
        kvmgdb_unwinder_mark() has it."""
        error = ffi.new("struct kvmgdb_error *")
        start, stop = _address(code.start), _address(code.stop)
        _check(
            lib.kvmgdb_unwinder_mark(self.native, start, stop, what, _address(detail), error),
            error,
        )

    def unwind(
        self,
        registers: dict[str, int],
        stacks: Sequence[StackCopy],
        user_frames: bool = False,
        from_call: bool = False,
    ) -> Unwound:
        """The frames from ``registers`` on, of which "ip" and "sp" must be there.
        ``from_call``: "ip" is a return address."""
        return self.prepare(registers, stacks, user_frames, from_call)()

    def prepare(
        self,
        registers: dict[str, int],
        stacks: Sequence[StackCopy],
        user_frames: bool = False,
        from_call: bool = False,
    ) -> PreparedUnwind:
        """As :meth:`unwind`, to be called as often as wanted."""
        return PreparedUnwind(self.native, registers, stacks, user_frames, from_call)


class PreparedUnwind:
    """Everything that one call of kvmgdb_unwind needs."""

    def __init__(
        self,
        unwinder: Any,
        registers: dict[str, int],
        stacks: Sequence[StackCopy],
        user_frames: bool,
        from_call: bool,
    ) -> None:
        self._unwinder = unwinder
        self._stacks = tuple(stacks)  # what the copies below point into
        self._registers = ffi.new("struct kvmgdb_unwind_registers *")
        for number, name in enumerate(REGISTERS):
            if name in registers:
                setattr(self._registers, name, _address(registers[name]))
                self._registers.known |= 1 << number
        self._copies = ffi.new("struct kvmgdb_stack[]", max(len(stacks), 1))
        for copy, stack in zip(self._copies, self._stacks, strict=False):
            copy.address = _address(stack.address)
            copy.data = ffi.from_buffer(stack.data)
            copy.length = len(stack.data)
        self._flags = (lib.KVMGDB_UNWIND_USER_FRAMES if user_frames else 0) | (
            lib.KVMGDB_UNWIND_FROM_CALL if from_call else 0
        )
        self._result = ffi.new("struct kvmgdb_unwind_result *")
        self._frames = ffi.new("struct kvmgdb_frame[]", MAX_FRAMES)
        self._error = ffi.new("struct kvmgdb_error *")

    def run(self) -> None:
        """Unwinds, without looking at the result. Raises where it cannot start."""
        status = lib.kvmgdb_unwind(
            self._unwinder,
            self._registers,
            self._copies,
            len(self._stacks),
            self._flags,
            self._frames,
            MAX_FRAMES,
            self._result,
            self._error,
        )
        _check(status, self._error)

    def __call__(self) -> Unwound:
        self.run()
        found = tuple(_frame(self._frames[index]) for index in range(self._result.count))
        return Unwound(found, UnwindEnd(self._result.end), self._result.address)


def _frame(frame: Any) -> Frame:
    return Frame(
        frame.ip,
        frame.sp,
        frame.bp if frame.bp_known else None,
        FrameSource(frame.source),
        bool(frame.is_exact),
        frame.registers,
    )
