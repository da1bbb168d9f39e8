"""Where the kernel lies, and through which page tables it is seen.

The kernel's image is mapped between ``0xffffffff80000000`` and
``0xffffffffc0000000`` (Documentation/arch/x86/x86_64/mm.rst), at 2 MiB steps
with KASLR, and nothing else is: the first page there is ``_text``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from kvmgdb.errors import KvmgdbError, NoKernelError
from kvmgdb.machine.native import Extent, Memory, Paging, PagingMode

KERNEL_START = 0xFFFFFFFF80000000
KERNEL_END = 0xFFFFFFFFC0000000
PAGE = 4096
HUGE_PAGE = 2 << 20
# A kernel's image with all that it may hold; also bounds what is copied of it.
MAX_IMAGE = 256 << 20
# A kernel's image is of one piece in physical memory but for its holes.
_MAX_EXTENTS = 1024
# With page-table isolation, user mode's table is the page behind the kernel's
# (PTI_USER_PGTABLE_BIT), and shows one huge page of the kernel: its entry code.
PTI_USER_BIT = 1 << 12
_MAX_SHOWN_TO_USER = HUGE_PAGE

_CR0_PAGING = 1 << 31
_CR4_PAE = 1 << 5
_CR4_LA57 = 1 << 12
_EFER_LONG_MODE = 1 << 10 | 1 << 8 | 1 << 11

# Of guest-physical memory, when page tables are looked for in it.
_SEARCH_STEP = 16 << 20
_MAX_SEARCHED = 16 << 30
_MAX_CANDIDATES = 256
_ENTRY_PRESENT_TABLE = 0x3  # present, writable
_ENTRY_MUST_BE_CLEAR = 0x80  # not a large page
_ENTRY_ADDRESS = 0x000FFFFFFFFFF000


@dataclass(frozen=True)
class Location:
    """The kernel's image as ``paging`` maps it. ``extents`` are what is mapped of
    it: freed init memory leaves holes. ``found_by`` says how, for people."""

    paging: Paging
    base: int
    extents: tuple[Extent, ...]
    found_by: str

    @property
    def end(self) -> int:
        return self.extents[-1].gva + self.extents[-1].size


def locate(memory: Memory, pagings: Sequence[Paging], search: bool = True) -> Location:
    """The kernel, as any of the vCPUs sees it, or else, with ``search``, as page
    tables in physical memory show it, which takes as long as reading all of it.
    Raises NoKernelError."""
    for index, paging in enumerate(pagings):
        location = _seen_by(memory, paging, f"vCPU {index}'s page tables")
        if location is not None:
            return location
    location = next(_search(memory), None) if search else None
    if location is None:
        raise NoKernelError("no Linux kernel is mapped by any vCPU's page tables")
    return location


def is_mapped(memory: Memory, location: Location, pagings: Sequence[Paging]) -> bool:
    """Whether any of the vCPUs still sees that very kernel at its place: none does
    after a reset, or once another kernel was started."""
    return any(
        gpa == location.extents[0].gpa for _, gpa in views_of(memory, location.base, pagings)
    )


def views_of(
    memory: Memory, address: int, pagings: Sequence[Paging]
) -> Iterator[tuple[Paging, int]]:
    """Where the page tables of the vCPUs, and those of the kernel beside them, map an
    address of the kernel (GPA), as far as they do."""
    for paging in pagings:
        if paging.mode not in (PagingMode.LEVEL4, PagingMode.LEVEL5):
            continue
        for table in (paging, replace(paging, cr3=paging.cr3 & ~PTI_USER_BIT)):
            with suppress(KvmgdbError):
                yield table, memory.translate(table, address).gpa


def _seen_by(memory: Memory, paging: Paging, found_by: str) -> Location | None:
    if paging.mode not in (PagingMode.LEVEL4, PagingMode.LEVEL5):
        return None
    seen = _look(memory, paging, found_by)
    if seen is not None and seen.end - seen.base > _MAX_SHOWN_TO_USER:
        return seen
    kernel = replace(paging, cr3=paging.cr3 & ~PTI_USER_BIT)
    if kernel != paging:
        isolated = _look(memory, kernel, f"{found_by} (isolated from user mode)")
        if isolated is not None and isolated.end - isolated.base > _MAX_SHOWN_TO_USER:
            return isolated
    return None


def _look(memory: Memory, paging: Paging, found_by: str) -> Location | None:
    extents: list[Extent] = []
    try:
        for extent in memory.extents(paging, KERNEL_START, KERNEL_END):
            if extents and extent.gva + extent.size - extents[0].gva > MAX_IMAGE:
                break
            if len(extents) == _MAX_EXTENTS:
                return None
            extents.append(extent)
    except KvmgdbError:
        return None
    if not extents or extents[0].gva % HUGE_PAGE:
        return None
    if extents[0].size > MAX_IMAGE:
        extents = [Extent(extents[0].gva, extents[0].gpa, MAX_IMAGE)]
    return Location(paging, extents[0].gva, tuple(extents), found_by)


def _search(memory: Memory) -> Iterator[Location]:
    """Looks at each page of RAM that could be a top-level table: its last entry
    leads to the kernel (level3_kernel_pgt, or the level above with 5 levels)."""
    tried = 0
    for gpa in _candidates(memory):
        tried += 1
        if tried > _MAX_CANDIDATES:
            return
        for levels in (0, _CR4_LA57):
            paging = Paging(_CR0_PAGING | 1, gpa, _CR4_PAE | levels, _EFER_LONG_MODE)
            seen = _look(memory, paging, f"a page table at {gpa:#x} in physical memory")
            if seen is None or seen.end - seen.base <= _MAX_SHOWN_TO_USER:
                continue
            if _has_banner(memory, seen):
                yield seen


def _candidates(memory: Memory) -> Iterator[int]:
    at = 0
    while at < _MAX_SEARCHED:
        data, _ = memory.read_partial(at, _SEARCH_STEP)
        whole = len(data) & ~(PAGE - 1)
        entries = memoryview(data)[:whole].cast("Q")[511::512].tolist()
        for index, entry in enumerate(entries):
            if (
                entry & _ENTRY_PRESENT_TABLE == _ENTRY_PRESENT_TABLE
                and not entry & _ENTRY_MUST_BE_CLEAR
                and 0 < entry & _ENTRY_ADDRESS < _MAX_SEARCHED
            ):
                yield at + index * PAGE
        at += _SEARCH_STEP


def _has_banner(memory: Memory, location: Location) -> bool:
    """Whether "Linux version" stands in what is mapped, so that the tables of
    anything else are not taken for a kernel's."""
    found, _, _ = memory.search_virtual(
        location.paging, location.base, location.end, b"Linux version ", MAX_IMAGE
    )
    return found is not None


def read_only_data(memory: Memory, location: Location) -> range | None:
    """The first range that may neither be written nor executed: .rodata, which begins
    where a huge page could. None where the kernel has not protected it (yet)."""
    start = location.base
    while start < location.end and not _is_constant(memory, location, start):
        start += HUGE_PAGE
    if start >= location.end:
        return None
    end = start + HUGE_PAGE
    while end < location.end and _is_constant(memory, location, end):
        end += HUGE_PAGE
    # It ends in the last huge page, or with it.
    low, high = end - HUGE_PAGE, min(end, location.end)
    while high - low > PAGE:
        middle = (low + high) // 2 & ~(PAGE - 1)
        if _is_constant(memory, location, middle):
            low = middle
        else:
            high = middle
    return range(start, high)


def _is_constant(memory: Memory, location: Location, gva: int) -> bool:
    try:
        translation = memory.translate(location.paging, gva)
    except KvmgdbError:
        return False
    return not translation.executable and not translation.writable


def copy_image(memory: Memory, location: Location, part: range) -> bytes:
    """A copy of part of the image, zero where nothing is mapped or readable."""
    data, error = memory.read_virtual_partial(location.paging, part.start, len(part))
    if error is None:
        return data
    image = bytearray(len(part))
    for extent in location.extents:
        start = max(extent.gva, part.start)
        end = min(extent.gva + extent.size, part.stop)
        if start < end:
            data, _ = memory.read_virtual_partial(location.paging, start, end - start)
            image[start - part.start : start - part.start + len(data)] = data
    return bytes(image)
