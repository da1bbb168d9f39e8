"""Which parts of the address space a file describes, and what they are for."""

from __future__ import annotations

from kvmgdb.errors import GuestDataError
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.modules import Module
from kvmgdb.symbols.elf import Area

_ADDRESS_END = 1 << 64

# Where a kind of contents begins, by a symbol of include/asm-generic/vmlinux.lds.h
# or arch/x86/kernel/vmlinux.lds.S: section, executable, writable.
_BOUNDS = {
    "_stext": (".text", True, False),
    "_text": (".text", True, False),
    "_etext": (".rodata", False, False),
    "_sdata": (".data", False, True),
    "__init_begin": (".init.data", False, True),
    "_sinittext": (".init.text", True, False),
    "_einittext": (".init.data", False, True),
    "__init_end": (".bss", False, True),
}


def kernel_areas(kernel: Kernel) -> list[Area]:
    """The kernel's image, from ``_text`` to its end, cut where its contents change.
    All of it is code where none of these places is known."""
    image = range(kernel.base, kernel.location.end)
    cuts = {image.start: (".text", True, False)}
    for name, kind in _BOUNDS.items():
        address = kernel.find_symbol(name)
        if address is not None and address in image:
            cuts[address] = kind
    starts = sorted(cuts)
    areas: list[Area] = []
    for start, end in zip(starts, [*starts[1:], image.stop], strict=True):
        name, executable, writable = cuts[start]
        if areas and areas[-1].name == name:
            start = areas.pop().addresses.start
        areas.append(Area(name, range(start, end), executable, writable))
    return areas


def module_areas(module: Module) -> list[Area]:
    """A module's parts, by rising address. Raises GuestDataError where they overlap."""
    areas: list[Area] = []
    for area in sorted(module.areas, key=lambda area: area.base):
        if not area.size or area.base + area.size > _ADDRESS_END:
            continue
        if areas and areas[-1].addresses.stop > area.base:
            raise GuestDataError(f"the parts of the module {module.name} overlap")
        code = area.kind.endswith("text")
        areas.append(
            Area(
                f".{area.kind}",
                range(area.base, area.base + area.size),
                executable=code,
                writable=not code and not area.kind.endswith("rodata"),
            )
        )
    return areas
