"""Which parts of the address space a file describes, and what they are for."""

from __future__ import annotations

from dataclasses import replace

from kvmgdb.errors import GuestDataError
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.locate import copy_image
from kvmgdb.linux.modules import Module
from kvmgdb.symbols.elf import Area

_ADDRESS_END = 1 << 64

# Where a kind of contents begins, by a symbol of include/asm-generic/vmlinux.lds.h
# or arch/x86/kernel/vmlinux.lds.S: section, executable, writable.
_BOUNDS = {
    "_stext": (".text", True, False),
    "_text": (".text", True, False),
    # The kernel gives what lies between to its allocator (mark_rodata_ro()).
    "_etext": (".gap", False, True),
    "__start_rodata": (".rodata", False, False),
    "__end_rodata": (".gap", False, True),
    # Not ".data", which crash(8) takes for a sign that there are contents.
    "_sdata": (".data.guest", False, True),
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


def with_contents(kernel: Kernel, areas: list[Area]) -> list[Area]:
    """The same areas, those that hold code or constants with what is there now, and
    zeros where nothing is mapped. What starts the kernel is left out: it is gone."""
    return [
        replace(area, contents=_contents(kernel, area.addresses)) if _is_lasting(area) else area
        for area in areas
    ]


def _is_lasting(area: Area) -> bool:
    return not area.writable and not area.name.startswith(".init")


def _contents(kernel: Kernel, addresses: range) -> bytes:
    if kernel.base <= addresses.start and addresses.stop <= kernel.location.end:
        return copy_image(kernel.memory, kernel.location, addresses)
    data, _ = kernel.memory.read_virtual_partial(kernel.paging, addresses.start, len(addresses))
    return data.ljust(len(addresses), b"\0")
