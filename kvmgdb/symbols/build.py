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
from kvmgdb.linux.native import BtfTable, Kind, SymbolTable, UnwindTables
from kvmgdb.linux.orc import add_kernel, module_tables
from kvmgdb.symbols.areas import kernel_areas, module_areas, with_contents
from kvmgdb.symbols.code_rules import code_rules
from kvmgdb.symbols.elf import Area, build_elf
from kvmgdb.symbols.native import CodeRule, DebugSections, PerCpu, Section, Variable
from kvmgdb.symbols.variables import module_per_cpu_area, per_cpu_area, typed_variables

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
_NO_BTF = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"\0"
_NO_FRAMES, _NO_TYPES = "no call frames", "no types"


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
    """As :func:`read_vmlinux`, and built."""
    return read_vmlinux(kernel, contents).build()


def build_module(kernel: Kernel, module: Module, contents: bool = False) -> SymbolFile:
    """As :func:`read_module`, and built."""
    return read_module(kernel, module, contents).build()


def read_vmlinux(kernel: Kernel, contents: bool = False) -> FileParts:
    """What the file of the kernel itself is made of, at the addresses where it runs;
    with ``contents`` its code and constants are in it, and VMCOREINFO as the section
    ".vmcoreinfo". Raises KvmgdbError where not even its symbols can be put into one."""
    parts = FileParts("vmlinux", kernel_areas(kernel), kernel.symbols, _compiler(kernel))
    if contents:
        parts.areas = with_contents(kernel, parts.areas)
        with suppress(KvmgdbError):
            parts.others[_VMCOREINFO] = _vmcoreinfo(kernel)
    with suppress(KvmgdbError):
        parts.build_id = read_build_id(kernel)
    with parts.warning(_NO_FRAMES):
        tables = UnwindTables()
        add_kernel(tables, kernel)
        parts.rules = code_rules(kernel)
        parts.frames = tables
        parts.is_kernel = True
    with parts.warning(_NO_TYPES):
        parts.variables = typed_variables(kernel)
        parts.per_cpu = per_cpu_area(kernel)
        parts.types = kernel.types.table
        if kind := parts.types.unknown_kind:
            parts.warnings.append(
                f"only {len(parts.types.ids)} types: behind them the kernel has one of kind {kind},"
                " which a newer kvmgdb may know"
            )
        elif parts.types.find(".data..percpu", Kind.DATASEC) is None:
            parts.warnings.append("no types of per-CPU variables: the kernel has none")
    return parts


def read_module(kernel: Kernel, module: Module, contents: bool = False) -> FileParts:
    """What the file of a module is made of, which goes with that of its kernel;
    ``contents`` as read_vmlinux takes it. Raises KvmgdbError where not even its symbols
    can be put into one."""
    parts = FileParts(module.name, module_areas(module), module.symbols, _compiler(kernel))
    if contents:
        parts.areas = with_contents(kernel, parts.areas)
    with parts.warning(_NO_FRAMES):
        parts.frames = module_tables(kernel, module)
    with parts.warning(_NO_TYPES):
        parts.types = module.types.table
        parts.per_cpu = module_per_cpu_area(kernel, module)
    return parts


class FileParts:
    """What a file is made of, read from the guest. :meth:`build` reads nothing more of
    it: it may run in another thread, whatever becomes of the guest meanwhile.

    ``areas`` by rising address, ``symbols``, and what the guest has of the rest:
    ``frames``, with ``rules`` for code that they do not describe; ``types``, with
    ``variables`` and ``per_cpu``; ``others`` are further sections by name.
    """

    def __init__(
        self, name: str, areas: list[Area], symbols: SymbolTable, compiler: str | None
    ) -> None:
        if not areas:
            raise GuestDataError(f"{name} lies nowhere in memory")
        self.name = name
        self.areas = areas
        self.symbols = symbols
        self.is_kernel = False
        self.frames: UnwindTables | None = None
        self.rules: Sequence[CodeRule] = ()
        self.types: BtfTable | None = None
        self.variables: Sequence[Variable] = ()
        self.per_cpu: PerCpu | None = None
        self.others: dict[str, bytes] = {}
        self.build_id: str | None = None
        self.warnings: list[str] = []
        self._producer = f"kvmgdb {__version__}, from BTF and ORC"
        self._is_gcc = compiler is not None
        if compiler:
            # GDB knows by this that code is unwound as described, to the last instruction.
            self._producer = f"GNU C {compiler}, described by {self._producer}"

    @contextmanager
    def warning(self, what: str) -> Iterator[None]:
        """Makes a warning of what the guest lacks or has damaged."""
        try:
            yield
        except KvmgdbError as error:
            self.warnings.append(f"{what}: {error}")

    def build(self) -> SymbolFile:
        """The file: frames, then types, then symbols. Raises KvmgdbError."""
        sections = DebugSections([(area.addresses, area.executable) for area in self.areas])
        if self.frames is not None:
            with self.warning(_NO_FRAMES):
                sections.add_frames(self.frames, self.symbols, self.rules, self.is_kernel)
        if self.types is not None:
            with self.warning(_NO_TYPES):
                self._add_types(sections, self.types)
        if not sections.section(Section.INFO):
            # Some functions must have their names there for GDB to unwind them.
            self._add_types(sections, BtfTable(_NO_BTF))
        local = sections.add_symbols(self.symbols)
        made = {name: sections.section(section) for name, section in _DEBUG.items()}
        data = build_elf(
            self.areas,
            sections.section(Section.SYMTAB),
            sections.section(Section.STRTAB),
            local,
            {**made, **self.others},
            bytes.fromhex(self.build_id or ""),
        )
        base = self.areas[0].addresses.start
        return SymbolFile(self.name, data, base, self.build_id, tuple(self.warnings))

    def _add_types(self, sections: DebugSections, types: BtfTable) -> None:
        known = types is self.types
        sections.add_types(
            types,
            self.symbols,
            self._producer,
            self.name,
            self.variables if known else (),
            self.per_cpu if known else None,
            self._is_gcc,
        )


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
