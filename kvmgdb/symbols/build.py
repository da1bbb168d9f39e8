"""The file of a kernel, and that of a module."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from kvmgdb import __version__
from kvmgdb.errors import GuestDataError, KvmgdbError
from kvmgdb.linux.identity import read_build_id, read_vmcoreinfo
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.modules import Module
from kvmgdb.linux.native import BtfTable, SymbolTable, UnwindTables
from kvmgdb.linux.orc import add_kernel, module_tables
from kvmgdb.symbols.areas import kernel_areas, module_areas, with_contents
from kvmgdb.symbols.code_rules import code_rules
from kvmgdb.symbols.elf import Area, build_elf
from kvmgdb.symbols.native import DebugSections, PerCpu, Section, Variable
from kvmgdb.symbols.variables import per_cpu_area, typed_variables

_DEBUG = {
    ".debug_abbrev": Section.ABBREV,
    ".debug_info": Section.INFO,
    ".debug_str": Section.STR,
    ".debug_aranges": Section.ARANGES,
    ".debug_loclists": Section.LOCLISTS,
    ".debug_frame": Section.FRAME,
}
_VMCOREINFO = ".vmcoreinfo"
# "gcc-12 (Debian 12.2.0-14) 12.2.0", "gcc version 8.3.0 (...)"
_GCC = re.compile(r"\bgcc\S* (?:\([^()]*\) |version )?(\d+\.\d+(?:\.\d+)?)")
# struct btf_header of a table without types.
_NO_TYPES = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"\0"


@dataclass(frozen=True)
class SymbolFile:
    """An ELF file in memory.

    ``name`` is "vmlinux" or the module's; ``base`` (GVA) where its first segment
    lies, in the file as in the guest; ``build_id`` hexadecimal, None where it is
    not known. ``warnings`` say in words what the guest did not give: a file
    without types, or without call frames, is as good as could be.
    """

    name: str
    data: bytes
    base: int
    build_id: str | None
    warnings: tuple[str, ...]


def build_vmlinux(kernel: Kernel, contents: bool = False) -> SymbolFile:
    """The file of the kernel itself, at the addresses where it runs; with ``contents``
    its code and constants are in it, and VMCOREINFO as the section ".vmcoreinfo".
    Raises KvmgdbError where not even its symbols can be put into one."""
    areas = kernel_areas(kernel)
    if contents:
        areas = with_contents(kernel, areas)
    file = _File("vmlinux", kernel, areas)
    if contents:
        with suppress(KvmgdbError):
            file.others[_VMCOREINFO] = _vmcoreinfo(kernel)
    with suppress(KvmgdbError):
        file.build_id = read_build_id(kernel)
    with file.warning("no call frames"):
        tables = UnwindTables()
        add_kernel(tables, kernel)
        file.sections.add_frames(tables, kernel.symbols, code_rules(kernel), user_mode=True)
    with file.warning("no types"):
        variables = typed_variables(kernel)
        file.add_types(kernel.types.table, kernel.symbols, variables, per_cpu_area(kernel))
    return file.finish(kernel.symbols)


def build_module(kernel: Kernel, module: Module, contents: bool = False) -> SymbolFile:
    """The file of a module, which goes with that of its kernel; ``contents`` as
    build_vmlinux takes it. Raises KvmgdbError where not even its symbols can be put
    into one."""
    areas = module_areas(module)
    if contents:
        areas = with_contents(kernel, areas)
    file = _File(module.name, kernel, areas)
    with file.warning("no call frames"):
        file.sections.add_frames(module_tables(kernel, module), module.symbols)
    with file.warning("no types"):
        file.add_types(module.types.table, module.symbols)
    return file.finish(module.symbols)


class _File:
    """A file while it is made: frames, then types, then symbols."""

    def __init__(self, name: str, kernel: Kernel, areas: list[Area]) -> None:
        if not areas:
            raise GuestDataError(f"{name} lies nowhere in memory")
        self.name = name
        self.areas = areas
        self.sections = DebugSections([(area.addresses, area.executable) for area in areas])
        self.others: dict[str, bytes | memoryview] = {}
        self.build_id: str | None = None
        self.warnings: list[str] = []
        self._compiler = _compiler(kernel)

    @contextmanager
    def warning(self, what: str) -> Iterator[None]:
        """Makes a warning of what the guest lacks or has damaged."""
        try:
            yield
        except KvmgdbError as error:
            self.warnings.append(f"{what}: {error}")

    def add_types(
        self,
        types: BtfTable,
        symbols: SymbolTable,
        variables: Sequence[Variable] = (),
        per_cpu: PerCpu | None = None,
    ) -> None:
        producer = f"kvmgdb {__version__}, from BTF and ORC"
        if self._compiler:
            # GDB knows by this that code is unwound as described, to the last instruction.
            producer = f"GNU C {self._compiler}, described by {producer}"
        self.sections.add_types(
            types, symbols, producer, self.name, variables, per_cpu, bool(self._compiler)
        )

    def finish(self, symbols: SymbolTable) -> SymbolFile:
        if not self.sections.section(Section.INFO):
            # Some functions must have their names there for GDB to unwind them.
            self.add_types(BtfTable(_NO_TYPES), symbols)
        local = self.sections.add_symbols(symbols)
        data = build_elf(
            self.areas,
            self.sections.section(Section.SYMTAB),
            self.sections.section(Section.STRTAB),
            local,
            {
                **{name: self.sections.section(section) for name, section in _DEBUG.items()},
                **self.others,
            },
            bytes.fromhex(self.build_id or ""),
        )
        base = self.areas[0].addresses.start
        return SymbolFile(self.name, data, base, self.build_id, tuple(self.warnings))


def _vmcoreinfo(kernel: Kernel) -> bytes:
    """VMCOREINFO of a kernel that lies where its file says: drgn moves the file by what
    this has as the offset. Raises KvmgdbError."""
    facts = read_vmcoreinfo(kernel)
    if "KERNELOFFSET" in facts:
        facts["KERNELOFFSET"] = "0"
    return "".join(f"{name}={value}\n" for name, value in facts.items()).encode()


def _compiler(kernel: Kernel) -> str | None:
    """The version of the GCC that made the kernel; None for other compilers."""
    with suppress(KvmgdbError):
        if found := _GCC.search(kernel.string(kernel.symbol("linux_banner"))):
            return found[1]
    return None
