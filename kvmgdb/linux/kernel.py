"""The guest's kernel: memory by kernel address, symbols, types, objects."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

from kvmgdb.errors import GuestDataError, KvmgdbError, NoKernelError, NotFoundError
from kvmgdb.linux.locate import Location, copy_image, locate, read_only_data
from kvmgdb.linux.native import BtfTable, Kallsyms, Symbol, SymbolTable
from kvmgdb.linux.objects import Object, Types
from kvmgdb.machine.native import Memory, Paging

_CR3_ADDRESS = 0x000FFFFFFFFFF000
_MAX_BTF = 64 << 20
# struct btf_header (include/uapi/linux/btf.h): magic, version and flags, then what the
# lengths are; what code has as constants of its own is shorter.
_BTF_BEGINNING = b"\x9f\xeb\x01\x00"
_BTF_HEADER = struct.Struct("<4x5I")
_MIN_BTF = 256 << 10
_MAX_CANDIDATES = 256
_MAX_CPUS = 8192
_CHUNK = 256
PAGE = 4096


class Kernel:
    """A running Linux kernel, seen through guest-physical memory.

    ``paging`` is the kernel's own page table, which is there as long as the
    kernel is. Reading raises MemoryFault, NoRamError or another KvmgdbError;
    names that the kernel does not have are NotFoundError.
    """

    def __init__(
        self, memory: Memory, location: Location, symbols: SymbolTable, kallsyms: Kallsyms
    ) -> None:
        self.memory = memory
        self.location = location
        self.symbols = symbols
        self.kallsyms = kallsyms
        self.paging = location.paging
        self.paging = self._own_paging()

    @classmethod
    def find(cls, memory: Memory, pagings: Sequence[Paging], search: bool = True) -> Kernel:
        """The kernel that runs on vCPUs with these control registers; ``search``
        as :func:`locate` takes it. Raises NoKernelError where there is none, or
        not yet."""
        location = locate(memory, pagings, search)
        part = read_only_data(memory, location)
        whole = range(location.base, location.end)
        for candidate in (part, whole) if part else (whole,):
            image = copy_image(memory, location, candidate)
            try:
                symbols, kallsyms = SymbolTable.from_kallsyms(image, candidate.start, location.base)
            except NotFoundError:
                continue
            if location.base not in (symbols.address("_text"), symbols.address("_stext")):
                raise GuestDataError(
                    f"the kernel's symbol table does not belong to the kernel at {location.base:#x}"
                )
            return cls(memory, location, symbols, kallsyms)
        raise NoKernelError(
            f"something is mapped at {location.base:#x}, but it has no kernel symbol table"
        )

    def _own_paging(self) -> Paging:
        for name in ("init_top_pgt", "swapper_pg_dir"):
            address = self.symbols.address(name)
            if address is None:
                continue
            try:
                root = self.memory.translate(self.paging, address).gpa
                own = replace(self.paging, cr3=root & _CR3_ADDRESS)
                if self.memory.translate(own, address).gpa == root:
                    return own
            except KvmgdbError:
                continue
        return self.paging

    @property
    def base(self) -> int:
        """Where the kernel begins (GVA): ``_text``."""
        return self.location.base

    # -- memory

    def read(self, address: int, length: int) -> bytes:
        return self.memory.read_virtual(self.paging, address, length)

    def unsigned(self, address: int, size: int) -> int:
        """An unsigned integer of ``size`` bytes."""
        return int.from_bytes(self.read(address, size), "little")

    def u32(self, address: int) -> int:
        return self.unsigned(address, 4)

    def u64(self, address: int) -> int:
        return self.unsigned(address, 8)

    def u64s(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", self.read(address, 8 * count))

    def string(self, address: int, limit: int = PAGE) -> str:
        """A null-terminated string; cut where it is longer than ``limit`` bytes."""
        data = b""
        while len(data) < limit:
            at = address + len(data)
            step = min(_CHUNK - at % _CHUNK, limit - len(data))
            piece = self.read(at, step)
            end = piece.find(b"\0")
            if end >= 0:
                return (data + piece[:end]).decode("utf-8", "backslashreplace")
            data += piece
        return data.decode("utf-8", "backslashreplace")

    # -- symbols

    def find_symbol(self, name: str) -> int | None:
        """The address of a symbol of the kernel itself."""
        return self.symbols.address(name)

    def symbol(self, name: str) -> int:
        """As find_symbol. Raises NotFoundError."""
        address = self.symbols.address(name)
        if address is None:
            raise NotFoundError(f"the guest's kernel has no symbol {name}")
        return address

    @cached_property
    def text(self) -> range:
        """The kernel's own code, with that of its initialization."""
        end = max(self.symbols.address(name) or 0 for name in ("_etext", "_einittext"))
        return range(self.base, max(end, self.base + 1))

    def symbol_at(self, address: int) -> Symbol | None:
        """The symbol that an address of the kernel's image belongs to."""
        if not self.base <= address < self.location.end:
            return None
        return self.symbols.at(address)

    # -- types and objects

    @cached_property
    def types(self) -> Types:
        """The kernel's BTF. Raises NotFoundError where it has none."""
        place = self._btf
        if place is None:
            raise NotFoundError("the guest's kernel has no BTF")
        if not 0 < len(place) <= _MAX_BTF:
            raise GuestDataError(f"the kernel's BTF cannot take {len(place)} bytes")
        return Types(BtfTable(self.read(place.start, len(place))))

    @cached_property
    def _btf(self) -> range | None:
        start, end = self.find_symbol("__start_BTF"), self.find_symbol("__stop_BTF")
        if start is not None and end is not None:
            return range(start, end)
        # Without CONFIG_KALLSYMS_ALL only code has symbols.
        return self._search_btf() if self.find_symbol("init_task") is None else None

    def _search_btf(self) -> range | None:
        """By its header."""
        at = self.base
        for _ in range(_MAX_CANDIDATES):
            found, at, _ = self.memory.search_virtual(
                self.paging, at, self.location.end, _BTF_BEGINNING, self.location.end - self.base
            )
            if found is None:
                return None
            with suppress(KvmgdbError):
                header = self.read(found, _BTF_HEADER.size)
                length, types, size, strings, text = _BTF_HEADER.unpack(header)
                end = length + strings + text
                if types == 0 and strings == size and _MIN_BTF <= end <= _MAX_BTF:
                    return range(found, found + end)
            at = found + 1
        return None

    def object(self, type_name: str, address: int) -> Object:
        """What lies at ``address``, as a type: "task_struct", "unsigned long"."""
        return Object(self, self.types, self.types.named(type_name), address)

    def variable(self, name: str, type_name: str) -> Object:
        """A global variable of the kernel."""
        return self.object(type_name, self.symbol(name))

    # -- per-CPU data

    @cached_property
    def cpu_count(self) -> int:
        """How many CPUs the kernel could have (nr_cpu_ids)."""
        address = self.find_symbol("nr_cpu_ids")
        count = self.u32(address) if address is not None else 1
        if not 0 < count <= _MAX_CPUS:
            raise GuestDataError(f"the kernel claims to have {count} CPUs")
        return count

    @cached_property
    def cpu_offsets(self) -> tuple[int, ...]:
        """What is added to a per-CPU symbol for each CPU (__per_cpu_offset)."""
        return self.u64s(self.symbol("__per_cpu_offset"), self.cpu_count)

    def cpus(self, mask: str = "__cpu_online_mask") -> list[int]:
        """The CPUs of a mask of the kernel, by number."""
        words = (self.cpu_count + 63) // 64
        bits = self.u64s(self.symbol(mask), words)
        return [cpu for cpu in range(self.cpu_count) if bits[cpu // 64] >> cpu % 64 & 1]

    def per_cpu(self, name: str, cpu: int) -> int:
        """The address of a per-CPU variable on one CPU."""
        if not 0 <= cpu < self.cpu_count:
            raise NotFoundError(f"the guest has no CPU {cpu}")
        return (self.symbol(name) + self.cpu_offsets[cpu]) & (1 << 64) - 1
