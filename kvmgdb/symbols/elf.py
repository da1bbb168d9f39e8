"""An ELF file whose memory is elsewhere: elf(5).

The parts of the address space are sections at their addresses, and program
headers likewise, so that a debugger knows where they lie. It reads them from the
machine: they have no contents (``NOBITS``), except for those that are given some,
for tools that have no machine.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_NOTE_HEADER = struct.Struct("<III")
_ET_EXEC = 2
_EM_X86_64 = 62
_PT_LOAD, _PT_NOTE = 1, 4
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_STRTAB, _SHT_NOTE, _SHT_NOBITS = 1, 2, 3, 7, 8
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR, _SHF_MERGE, _SHF_STRINGS = 1, 2, 4, 0x10, 0x20
_PF_X, _PF_W, _PF_R = 1, 2, 4
_SYMBOL_SIZE = 24
_NT_GNU_BUILD_ID = 3
_ALIGNMENT = 8
_PAGE = 4096
# What tells a file of ours: the .comment that compilers sign with, put first.
COMMENT = b"kvmgdb: symbols, types and call frames from a guest's memory\0"
_IDENTIFICATION = b"\x7fELF\x02\x01\x01"


@dataclass(frozen=True)
class Area:
    """A part of the address space (GVAs) that becomes a section; ``contents`` are as
    long as it is, or none."""

    name: str
    addresses: range
    executable: bool = False
    writable: bool = False
    contents: bytes = b""


@dataclass(frozen=True)
class _Section:
    name: str
    type: int
    data: bytes | memoryview = b""
    flags: int = 0
    address: int = 0
    size: int = 0
    link: int = 0
    info: int = 0
    alignment: int = 1
    entry_size: int = 0


def build_elf(
    areas: Sequence[Area],
    symtab: bytes | memoryview,
    strtab: bytes | memoryview,
    local_symbols: int,
    others: dict[str, bytes | memoryview],
    build_id: bytes,
) -> bytes:
    """The file: ``areas`` are sections 1 and following, ``others`` those that have no
    address, by name; empty ones, and an empty build ID, are left out."""
    sections = [_Section("", 0)]
    sections += [_area_section(area) for area in areas]
    sections.append(_Section(".comment", _SHT_PROGBITS, COMMENT))
    note = _build_id_note(build_id) if build_id else b""
    if note:
        sections.append(_Section(".note.gnu.build-id", _SHT_NOTE, note, alignment=4))
    sections += [_other_section(name, data) for name, data in others.items() if data]
    strings = len(sections) + 1
    sections.append(
        _Section(
            ".symtab",
            _SHT_SYMTAB,
            symtab,
            link=strings,
            info=local_symbols,
            alignment=8,
            entry_size=_SYMBOL_SIZE,
        )
    )
    sections.append(_Section(".strtab", _SHT_STRTAB, strtab))
    return _write(sections, areas, bool(note))


def _entry(areas: Sequence[Area]) -> int:
    """Where code begins: GDB's ``info files`` wants a section around the entry point."""
    return next((area.addresses.start for area in areas if area.executable), 0)


def _area_section(area: Area) -> _Section:
    flags = _SHF_ALLOC
    flags |= _SHF_EXECINSTR if area.executable else 0
    flags |= _SHF_WRITE if area.writable else 0
    return _Section(
        area.name,
        _SHT_PROGBITS if area.contents else _SHT_NOBITS,
        area.contents,
        flags=flags,
        address=area.addresses.start,
        size=len(area.addresses),
    )


def _other_section(name: str, data: bytes | memoryview) -> _Section:
    strings = name == ".debug_str"
    return _Section(
        name,
        _SHT_PROGBITS,
        data,
        flags=_SHF_MERGE | _SHF_STRINGS if strings else 0,
        entry_size=1 if strings else 0,
    )


def _build_id_note(build_id: bytes) -> bytes:
    name = b"GNU\0"
    padding = b"\0" * (-len(build_id) % 4)
    return _NOTE_HEADER.pack(len(name), len(build_id), _NT_GNU_BUILD_ID) + name + build_id + padding


def _write(sections: list[_Section], areas: Sequence[Area], has_note: bool) -> bytes:
    names = bytearray()
    name_offsets = []
    for section in [*sections, _Section(".shstrtab", _SHT_STRTAB)]:
        name_offsets.append(len(names))
        names += section.name.encode() + b"\0"
    sections = [*sections, _Section(".shstrtab", _SHT_STRTAB, bytes(names))]

    segments = len(areas) + has_note
    position = _ELF_HEADER.size + _PROGRAM_HEADER.size * segments
    body: list[bytes | memoryview] = []
    headers: dict[int, bytes] = {}
    load_headers = []
    note_header = b""
    # The comment's contents come first, whatever is as long as an area's behind it.
    order = sorted(range(len(sections)), key=lambda index: sections[index].name != ".comment")
    for index in order:
        section = sections[index]
        if section.data:
            # What is loaded lies in the file as it does in its pages.
            padding = (section.address - position) % (_PAGE if section.address else _ALIGNMENT)
            body += [b"\0" * padding, section.data]
            position += padding
        size = section.size or len(section.data)
        headers[index] = _SECTION_HEADER.pack(
            name_offsets[index],
            section.type,
            section.flags,
            section.address,
            position if section.type else 0,
            size,
            section.link,
            section.info,
            section.alignment if section.type else 0,
            section.entry_size,
        )
        if section.type == _SHT_NOTE:
            note_header = _PROGRAM_HEADER.pack(_PT_NOTE, _PF_R, position, 0, 0, size, size, 4)
        if 0 < index <= len(areas):
            load_headers.append(_load_header(areas[index - 1], position))
        position += len(section.data)
    padding = -position % _ALIGNMENT
    body.append(b"\0" * padding)
    elf_header = _ELF_HEADER.pack(
        _IDENTIFICATION,
        _ET_EXEC,
        _EM_X86_64,
        1,
        _entry(areas),
        _ELF_HEADER.size,
        position + padding,
        0,
        _ELF_HEADER.size,
        _PROGRAM_HEADER.size,
        segments,
        _SECTION_HEADER.size,
        len(headers),
        len(headers) - 1,
    )
    section_headers = [headers[index] for index in range(len(sections))]
    return b"".join([elf_header, *load_headers, note_header, *body, *section_headers])


def _load_header(area: Area, position: int) -> bytes:
    flags = _PF_R | (_PF_X if area.executable else 0) | (_PF_W if area.writable else 0)
    start, size = area.addresses.start, len(area.addresses)
    if not area.contents:
        return _PROGRAM_HEADER.pack(_PT_LOAD, flags, 0, start, start, 0, size, 1)
    return _PROGRAM_HEADER.pack(_PT_LOAD, flags, position, start, start, size, size, _PAGE)
