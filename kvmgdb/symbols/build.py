"""The file of a kernel, and that of a module."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from kvmgdb import __version__
from kvmgdb.errors import GuestDataError, KvmgdbError
from kvmgdb.linux.identity import read_build_id
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.modules import Module
from kvmgdb.linux.native import UnwindTables
from kvmgdb.linux.orc import add_kernel, module_tables
from kvmgdb.symbols.areas import kernel_areas, module_areas
from kvmgdb.symbols.elf import Area, build_elf
from kvmgdb.symbols.native import DebugSections, Section
from kvmgdb.symbols.thunks import thunk_rules
from kvmgdb.symbols.variables import per_cpu_area, typed_variables

_PRODUCER = f"kvmgdb {__version__}, from the guest's BTF"


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


def build_vmlinux(kernel: Kernel) -> SymbolFile:
    """The file of the kernel itself, at the addresses where it runs. Raises
    KvmgdbError where not even its symbols can be put into one."""
    build_id = None
    with suppress(KvmgdbError):
        build_id = read_build_id(kernel)
    warnings: list[str] = []
    areas = kernel_areas(kernel)
    sections = _sections(areas)
    try:
        tables = UnwindTables()
        add_kernel(tables, kernel)
        sections.add_frames(tables, kernel.symbols, thunk_rules(kernel), user_mode=True)
    except KvmgdbError as error:
        warnings.append(f"no call frames: {error}")
    try:
        sections.add_types(
            kernel.types.table,
            kernel.symbols,
            _PRODUCER,
            "vmlinux",
            typed_variables(kernel),
            per_cpu_area(kernel),
        )
    except KvmgdbError as error:
        warnings.append(f"no types: {error}")
    local = sections.add_symbols(kernel.symbols)
    return _finish("vmlinux", areas, sections, local, build_id, warnings)


def build_module(kernel: Kernel, module: Module) -> SymbolFile:
    """The file of a module, which goes with that of its kernel. Raises KvmgdbError
    where not even its symbols can be put into one."""
    warnings: list[str] = []
    areas = module_areas(module)
    if not areas:
        raise GuestDataError(f"the module {module.name} lies nowhere")
    sections = _sections(areas)
    try:
        sections.add_frames(module_tables(kernel, module), module.symbols)
    except KvmgdbError as error:
        warnings.append(f"no call frames: {error}")
    try:
        sections.add_types(module.types.table, module.symbols, _PRODUCER, module.name)
    except KvmgdbError as error:
        warnings.append(f"no types: {error}")
    local = sections.add_symbols(module.symbols)
    return _finish(module.name, areas, sections, local, None, warnings)


def _sections(areas: list[Area]) -> DebugSections:
    return DebugSections([(area.addresses, area.executable) for area in areas])


def _finish(
    name: str,
    areas: list[Area],
    sections: DebugSections,
    local_symbols: int,
    build_id: str | None,
    warnings: list[str],
) -> SymbolFile:
    data = build_elf(
        areas,
        sections.section(Section.SYMTAB),
        sections.section(Section.STRTAB),
        local_symbols,
        {
            ".debug_abbrev": sections.section(Section.ABBREV),
            ".debug_info": sections.section(Section.INFO),
            ".debug_str": sections.section(Section.STR),
            ".debug_aranges": sections.section(Section.ARANGES),
            ".debug_loc": sections.section(Section.LOC),
            ".debug_frame": sections.section(Section.FRAME),
        },
        bytes.fromhex(build_id) if build_id else b"",
    )
    return SymbolFile(name, data, areas[0].addresses.start, build_id, tuple(warnings))
