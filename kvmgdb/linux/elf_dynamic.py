"""The symbols that an ELF file exports, found as the dynamic linker finds them: by
PT_DYNAMIC (gABI, chapter 5; DT_GNU_HASH as glibc's elf/dl-lookup.c reads it). Section
headers lie at the end of a file, which nobody reads who only runs it."""

from __future__ import annotations

import struct
from collections.abc import Callable

from kvmgdb.errors import GuestDataError

_ENTRY = struct.Struct("<QQ")
_DT_NULL, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT = 0, 4, 5, 6, 10, 11
_DT_GNU_HASH = 0x6FFFFEF5
_MAX_ENTRIES = 512
_MAX_SYMBOLS = 1 << 20
_MAX_STRINGS = 32 << 20
_SYMBOL_SIZE = 24

ReadAt = Callable[[int, int], bytes]


def read_exported(dynamic: bytes, read: ReadAt) -> tuple[bytes, bytes]:
    """The symbol table and its strings. ``dynamic`` is what PT_DYNAMIC names, and
    ``read(address, length)`` reads at an address of the file's own. Raises what that
    does, and GuestDataError."""
    tags: dict[int, int] = {}
    entries = dynamic[: len(dynamic) // _ENTRY.size * _ENTRY.size][: _MAX_ENTRIES * _ENTRY.size]
    for tag, value in _ENTRY.iter_unpack(entries):
        if tag == _DT_NULL:
            break
        tags.setdefault(tag, value)
    if not {_DT_SYMTAB, _DT_STRTAB, _DT_STRSZ} <= tags.keys():
        raise GuestDataError("the file's dynamic section names no symbols")
    if tags.get(_DT_SYMENT, _SYMBOL_SIZE) != _SYMBOL_SIZE or tags[_DT_STRSZ] > _MAX_STRINGS:
        raise GuestDataError("the file's dynamic section is damaged")
    count = _count(tags, read)
    if count > _MAX_SYMBOLS:
        raise GuestDataError(f"the file claims to export {count} symbols")
    symbols = read(tags[_DT_SYMTAB], count * _SYMBOL_SIZE)
    return symbols, read(tags[_DT_STRTAB], tags[_DT_STRSZ])


def _count(tags: dict[int, int], read: ReadAt) -> int:
    """How many symbols there are: only the hash tables tell."""
    if _DT_HASH in tags:
        return int(struct.unpack("<II", read(tags[_DT_HASH], 8))[1])
    if _DT_GNU_HASH not in tags:
        raise GuestDataError("the file's dynamic section does not say how many symbols it has")
    table = tags[_DT_GNU_HASH]
    buckets, first, bloom, _ = struct.unpack("<IIII", read(table, 16))
    if buckets > _MAX_SYMBOLS or bloom > _MAX_SYMBOLS:
        raise GuestDataError("the file's hash table is damaged")
    chains = table + 16 + 8 * bloom + 4 * buckets
    last: int = max(
        struct.unpack(f"<{buckets}I", read(chains - 4 * buckets, 4 * buckets)), default=0
    )
    if last < first:
        return int(first)
    # The chain of the last bucket ends with an odd hash.
    while last - first < _MAX_SYMBOLS:
        (value,) = struct.unpack("<I", read(chains + 4 * (last - first), 4))
        last += 1
        if value & 1:
            return last
    raise GuestDataError("the file's hash table has no end")
