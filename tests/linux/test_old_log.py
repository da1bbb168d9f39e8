"""The log of kernels before 5.10, in memory that is written here: no Debian suite that
can be had has such a kernel any more."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from kvmgdb.errors import KvmgdbError, NotFoundError
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.locate import locate
from kvmgdb.linux.log import Record, read_log
from kvmgdb.linux.native import Kallsyms, SymbolTable
from kvmgdb.machine.native import Paging
from tests.linux.test_not_linux import LONG_MODE, MEBIBYTE, Ram

BASE = 0xFFFFFFFF81000000
IMAGE = 2 * MEBIBYTE  # where it lies in physical memory
# kernel/printk/printk.c of 5.4: ts_nsec, len, text_len, dict_len, facility, and
# flags:5 with level:3.
HEADER = struct.Struct("<QHHHBB")
SIZE = 4096
SYMBOLS = {
    name: BASE + 0x1000 + 8 * place
    for place, name in enumerate(
        (
            "log_buf",
            "log_buf_len",
            "log_first_idx",
            "log_first_seq",
            "log_next_seq",
            "vmcoreinfo_data",
            "vmcoreinfo_size",
        )
    )
}
NOTES = BASE + 0x2000
BUFFER = BASE + 0x10000
VMCOREINFO = (
    "SIZE(printk_log)=16\nOFFSET(printk_log.ts_nsec)=0\nOFFSET(printk_log.len)=8\n"
    "OFFSET(printk_log.text_len)=10\nOFFSET(printk_log.dict_len)=12\n"
)


class OldKernel:
    """A kernel's image with nothing in it but a log."""

    def __init__(self) -> None:
        self.ram = Ram(8 * MEBIBYTE)
        self.ram.map_kernel(0x10000, 3)
        names = b"\0" + b"".join(name.encode() + b"\0" for name in SYMBOLS)
        table = b"".join(
            struct.pack("<IBBHQQ", names.index(name.encode()), 0, 0, 1, address, 0)
            for name, address in SYMBOLS.items()
        )
        symbols = SymbolTable.from_elf(table, names, b"D" * len(SYMBOLS))
        location = locate(self.ram.memory, [Paging(cr3=0x10000, **LONG_MODE)])
        nowhere = Kallsyms(0, 0, 0, 0, 0, 0, 0, "base-relative")
        self.kernel = Kernel(self.ram.memory, location, symbols, nowhere)
        self.put_notes(VMCOREINFO)
        self.put("log_buf", BUFFER)
        self.put("log_buf_len", SIZE)

    def write(self, gva: int, data: bytes) -> None:
        at = gva - BASE + IMAGE
        self.ram.bytes[at : at + len(data)] = data

    def put(self, symbol: str, value: int) -> None:
        self.write(SYMBOLS[symbol], value.to_bytes(8, "little"))

    def put_notes(self, text: str) -> None:
        self.write(NOTES, text.encode())
        self.put("vmcoreinfo_data", NOTES)
        self.put("vmcoreinfo_size", len(text))


@pytest.fixture
def old() -> Iterator[OldKernel]:
    made = OldKernel()
    yield made
    made.ram.memory.close()


def record(time: int, text: bytes, level: int, dictionary: bytes = b"") -> bytes:
    body = text + dictionary
    length = HEADER.size + len(body) + 3 & ~3
    header = HEADER.pack(time, length, len(text), len(dictionary), 3, level << 5 | 6)
    return (header + body).ljust(length, b"\0")


def test_records_that_wrap(old: OldKernel) -> None:
    """The last at the end of the buffer is followed by a length of 0, and goes on at
    its start."""
    first, second = record(1000, b"one", 6, b"SUBSYSTEM=pci"), record(2000, b"two\nlines", 4)
    third = record(3000, b"caf\xe9", 0)
    place = 3000
    old.write(BUFFER + place, first + second + HEADER.pack(0, 0, 0, 0, 0, 0))
    old.write(BUFFER, third)
    old.put("log_first_idx", place)
    old.put("log_first_seq", 7)
    old.put("log_next_seq", 10)
    assert read_log(old.kernel) == [
        Record(7, 1000, 3, 6, None, "one"),
        Record(8, 2000, 3, 4, None, "two\nlines"),
        Record(9, 3000, 3, 0, None, "caf\\xe9"),
    ]


@pytest.mark.parametrize("notes", ["", "SIZE(printk_log)=16\n", "SIZE(printk_log)=many\n"])
def test_a_log_that_nothing_describes(old: OldKernel, notes: str) -> None:
    old.put("log_next_seq", 1)
    old.put_notes(notes)
    with pytest.raises(NotFoundError):
        read_log(old.kernel)


@pytest.mark.parametrize(
    "notes",
    [
        VMCOREINFO.replace("=16", "=4294967296"),
        VMCOREINFO.replace("len)=8", "len)=-8"),
        VMCOREINFO.replace("dict_len)=12", "dict_len)=15"),
    ],
)
def test_a_log_that_is_described_wrongly(old: OldKernel, notes: str) -> None:
    old.put("log_next_seq", 1)
    old.put_notes(notes)
    with pytest.raises(KvmgdbError, match="cannot be as described"):
        read_log(old.kernel)


def test_random_logs(old: OldKernel) -> None:
    """Whatever stands there: no more than the buffer can hold, or an error."""
    generator = random.Random(20190923)
    begin = time.monotonic()
    for number in range(300):
        data = bytearray(generator.randbytes(SIZE))
        at = 0
        while number % 2 and at + 64 < SIZE:  # mostly right, and then damaged
            piece = record(at, bytes(generator.randrange(40)), generator.randrange(8))
            data[at : at + len(piece)] = piece
            at += len(piece)
        for _ in range(8):
            data[generator.randrange(SIZE)] = generator.choice((0, 1, 0xFF))
        old.write(BUFFER, bytes(data))
        old.put("log_first_idx", generator.choice((0, generator.randrange(SIZE), 0xFFFFFFFF)))
        old.put("log_first_seq", generator.choice((0, 1 << 40)))
        old.put("log_next_seq", generator.choice((50, (1 << 40) + 5000, (1 << 64) - 1)))
        with suppress(KvmgdbError):
            assert sum(len(found.text) for found in read_log(old.kernel)) <= 4 * SIZE
    assert time.monotonic() - begin < 400
