"""A guest's memory in a memfd, with 4-level page tables."""

from __future__ import annotations

import mmap
import os
import struct
from types import TracebackType
from typing import Self

from kvmgdb.machine.native import Memory, Paging

PAGE = 0x1000
BASE = 0xFFFF_8880_0000_0000
PRESENT, WRITABLE, USER = 1, 2, 4

# CR0.PG, CR4.PAE, EFER.LME and LMA
_CR0, _CR4, _EFER = 1 << 31, 1 << 5, 1 << 8 | 1 << 10


class Guest:
    """``size`` bytes of RAM at guest-physical 0; tables grow from ``tables``."""

    def __init__(self, size: int = 2 << 20, tables: int = 1 << 20) -> None:
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, size)
        self.ram = mmap.mmap(self.fd, size)
        self.memory = Memory()
        self.memory.add_file(0, size, self.fd)
        self.paging = Paging(_CR0, tables, _CR4, _EFER)
        self._root = tables
        self._next = tables + PAGE

    def map(self, gva: int, gpa: int, flags: int = WRITABLE | USER) -> None:
        table = self._root
        for level in (4, 3, 2):
            place = table + (gva >> 12 + 9 * (level - 1) & 511) * 8
            (entry,) = struct.unpack_from("<Q", self.ram, place)
            if not entry & PRESENT:
                entry = self._next | PRESENT | WRITABLE | USER
                struct.pack_into("<Q", self.ram, place, entry)
                self._next += PAGE
            table = entry & ~0xFFF
        struct.pack_into("<Q", self.ram, table + (gva >> 12 & 511) * 8, gpa | flags | PRESENT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.memory.close()
        self.ram.close()
        os.close(self.fd)
