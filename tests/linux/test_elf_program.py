"""Functions of programs, with and without the parts of their files."""

from __future__ import annotations

import random
from pathlib import Path

from kvmgdb.errors import KvmgdbError, NotFoundError
from kvmgdb.linux.elf_program import ElfProgram, Read

_SECTION_HEADERS_AT = slice(40, 48)


def _libc() -> bytes:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return Path(next(line.split()[-1] for line in lines if "libc.so" in line)).read_bytes()


def _reader(data: bytes, end: int) -> Read:
    """Reads up to ``end``: what lies behind is not in memory."""

    def read(offset: int, length: int) -> bytes:
        if offset + length > end:
            raise NotFoundError("not in memory")
        return data[offset : offset + length]

    return read


def _named(program: ElfProgram, addresses: range) -> list[str | None]:
    found = (program.function_at(address) for address in addresses)
    return [None if function is None else function.name for function in found]


def test_without_section_headers() -> None:
    """Which nobody reads who only runs a file: the dynamic linker's way finds what it
    exports, under the same names at the same places."""
    data = _libc()
    headers = int.from_bytes(data[_SECTION_HEADERS_AT], "little")
    whole = ElfProgram(_reader(data, len(data)))
    part = ElfProgram(_reader(data, headers))
    assert len(part) > 500
    assert not part.complete
    ends = [segment.address + segment.size for segment in part._loaded]
    addresses = range(0, max(ends), 997)
    names = _named(part, addresses)
    assert sum(name is not None for name in names) > 50
    if not whole.complete:  # with .symtab there are more
        assert names == _named(whole, addresses)


def test_a_file_without_functions() -> None:
    data = bytearray(_libc())
    headers = int.from_bytes(data[_SECTION_HEADERS_AT], "little")
    dynamic = next(
        each for each in ElfProgram(_reader(bytes(data), headers))._segments if each.kind == 2
    )
    data[dynamic.offset : dynamic.offset + 16] = bytes(16)  # DT_NULL
    program = ElfProgram(_reader(bytes(data), headers))
    assert len(program) == 0
    assert program.function_at(0x1000) is None


def test_damaged_files() -> None:
    """Whatever the file claims: an error, or fewer names, soon."""
    data = bytearray(_libc())
    headers = int.from_bytes(data[_SECTION_HEADERS_AT], "little")
    whole = ElfProgram(_reader(bytes(data), headers))
    dynamic = next(each for each in whole._segments if each.kind == 2)
    source = random.Random(5)
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(8):
            inside = dynamic.offset + source.randrange(dynamic.size)
            damaged[source.choice((inside, source.randrange(64, 1024)))] = source.randrange(256)
        try:
            assert len(ElfProgram(_reader(bytes(damaged), headers))) <= 1 << 20
        except KvmgdbError:
            continue
