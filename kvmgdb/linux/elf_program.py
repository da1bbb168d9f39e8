"""Functions of a program or library, from its ELF file (gABI, chapter 4)."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from kvmgdb.errors import GuestDataError, NotFoundError
from kvmgdb.linux.elf_dynamic import read_exported

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_PT_LOAD, _PT_DYNAMIC = 1, 2
_PF_X = 1
_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_SHN_UNDEF, _SHN_LORESERVE = 0, 0xFF00
_SHF_EXECINSTR = 4
# Functions, those that choose themselves, and what assembly code does not type.
_STT_NOTYPE, _STT_FUNC, _STT_GNU_IFUNC = 0, 2, 10
_STB_WEAK = 2
_MAX_SEGMENTS = 128
_MAX_SECTIONS = 4096
_MAX_SYMBOLS = 1 << 20
_MAX_STRINGS = 32 << 20
_MAX_NAME = 2048
_MAX_DYNAMIC = 64 << 10
_LAST = (1 << 64) - 1

Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Function:
    """A function at the addresses [start, end) of its file."""

    start: int
    end: int
    name: str


@dataclass(frozen=True)
class _Segment:
    kind: int
    flags: int
    offset: int
    address: int
    size: int


class ElfProgram:
    """``read(offset, length)`` returns bytes of the file, or raises NotFoundError
    for those that cannot be had. Raises GuestDataError for what is no ELF file.

    ``complete`` is whether the fullest symbol table that it has was there. Where its
    section headers were not, what it exports is found by PT_DYNAMIC.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        header = _HEADER.unpack(read(0, _HEADER.size))
        if not header[0].startswith(_MAGIC):
            raise GuestDataError("the file is no 64-bit ELF file")
        self._segments = self._read_segments(header[5], header[9], header[10])
        self._loaded = [segment for segment in self._segments if segment.kind == _PT_LOAD]
        self.complete = False
        self._functions: list[Function] = []
        self._starts: list[int] = []
        with suppress(NotFoundError):  # what is not in memory cannot be known
            self._read_symbols(header[6], header[11], header[12])
        if not self._functions:
            with suppress(NotFoundError, GuestDataError):
                self._read_exported()

    def __len__(self) -> int:
        return len(self._functions)

    def address_of(self, offset: int) -> int:
        """The address that the file itself gives to a byte of it. Raises
        NotFoundError where it is in no segment."""
        for segment in self._loaded:
            if segment.offset <= offset < segment.offset + segment.size:
                return segment.address + (offset - segment.offset)
        raise NotFoundError(f"offset {offset:#x} of the file is in none of its segments")

    def function_at(self, address: int) -> Function | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        function = self._functions[index]
        return function if address < function.end else None

    def gap_at(self, address: int) -> range:
        """The addresses around one that belong to no function either."""
        index = bisect_right(self._starts, address)
        end = self._starts[index] if index < len(self._starts) else address + 1
        start = self._functions[index - 1].end if index else address
        return range(min(start, address), max(end, address + 1))

    def _read_segments(self, offset: int, size: int, count: int) -> list[_Segment]:
        if size != _SEGMENT.size or count > _MAX_SEGMENTS:
            raise GuestDataError("the file's program headers are damaged")
        table = self._read(offset, size * count)
        return [
            _Segment(kind, flags, offset, address, size)
            for kind, flags, offset, address, _, size, _, _ in _SEGMENT.iter_unpack(table)
        ]

    def _read_symbols(self, offset: int, size: int, count: int) -> None:
        if not offset or not count:
            return
        if size != _SECTION.size or count > _MAX_SECTIONS:
            raise GuestDataError("the file's section headers are damaged")
        sections = list(_SECTION.iter_unpack(self._read(offset, size * count)))
        self.complete = True
        for kind in (_SHT_SYMTAB, _SHT_DYNSYM):
            table = next((section for section in sections if section[1] == kind), None)
            if table is None or table[6] >= len(sections):
                continue
            try:
                self._add_table(sections, table)
            except NotFoundError:
                self.complete = False
                continue
            return

    def _add_table(self, sections: list[tuple[int, ...]], table: tuple[int, ...]) -> None:
        strings_at, strings_size = sections[table[6]][4:6]
        if table[5] > _MAX_SYMBOLS * _SYMBOL.size or strings_size > _MAX_STRINGS:
            raise GuestDataError("the file's symbol table is too large")
        symbols = self._read(table[4], table[5] - table[5] % _SYMBOL.size)
        strings = self._read(strings_at, strings_size)
        executable = {
            number for number, section in enumerate(sections) if section[2] & _SHF_EXECINSTR
        }
        self._add_symbols(symbols, strings, lambda section, _: section in executable)

    def _read_exported(self) -> None:
        """By the segments alone."""
        dynamic = next((each for each in self._segments if each.kind == _PT_DYNAMIC), None)
        if dynamic is None or dynamic.size > _MAX_DYNAMIC:
            return
        content = self._read(dynamic.offset, dynamic.size)
        code = [
            range(segment.address, segment.address + segment.size)
            for segment in self._loaded
            if segment.flags & _PF_X
        ]
        self._add_symbols(
            *read_exported(content, self._read_at),
            lambda _, value: any(value in part for part in code),
        )

    def _read_at(self, address: int, length: int) -> bytes:
        for segment in self._loaded:
            start = address - segment.address
            if start >= 0 and start + length <= segment.size:
                return self._read(segment.offset + start, length)
        raise NotFoundError(f"address {address:#x} of the file is in none of its segments")

    def _add_symbols(
        self, symbols: bytes, strings: bytes, is_code: Callable[[int, int], bool]
    ) -> None:
        """``is_code`` says of a symbol's section number and value whether it is in code."""
        found: dict[int, tuple[int, bool, int]] = {}
        for name, info, _, section, value, size in _SYMBOL.iter_unpack(symbols):
            kind = info & 0xF
            if not name or not _SHN_UNDEF < section < _SHN_LORESERVE:
                continue
            if kind not in (_STT_FUNC, _STT_GNU_IFUNC, _STT_NOTYPE) or not is_code(section, value):
                continue
            # Of several names at one place the one with a size says more, and a weak
            # one is another's alias.
            named = (size, info >> 4 != _STB_WEAK, name)
            if value not in found or named[:2] > found[value][:2]:
                found[value] = named
        ordered = sorted(found)
        for value, following in zip(ordered, [*ordered[1:], _LAST], strict=False):
            size, _, name = found[value]
            end = min(value + size, following) if size else min(following, value + (1 << 20))
            if end > value:
                self._functions.append(Function(value, end, _string(strings, name)))
        self._starts = [function.start for function in self._functions]


def _string(strings: bytes, offset: int) -> str:
    end = strings.find(b"\0", offset, offset + _MAX_NAME)
    data = strings[offset : end if end >= 0 else offset + _MAX_NAME]
    return data.decode("utf-8", "backslashreplace")
