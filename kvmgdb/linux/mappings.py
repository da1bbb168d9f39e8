"""What a task's addresses stand for: its mappings, and the files behind them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from kvmgdb.errors import GuestDataError, NotFoundError
from kvmgdb.linux.kernel import PAGE, Kernel
from kvmgdb.linux.objects import Object
from kvmgdb.linux.page_cache import CachedFile

_VM_EXEC = 4  # include/linux/mm.h
_MAX_MAPPINGS = 1 << 16
_MAX_DEPTH = 64
# The maple tree (include/linux/maple_tree.h): an entry that is a node has its
# type in bits 3 to 6, and its address above the lowest 8.
_MAX_LEVELS = 31
_NODE_MASK = ~0xFF & (1 << 64) - 1
_NODE_TYPES = {1: "maple_range_64", 2: "maple_range_64", 3: "maple_arange_64"}
_LEAF_64 = 1


@dataclass(frozen=True)
class Mapping:
    """A range of addresses (GVA) of a task. ``offset`` is that of its first byte in
    ``file``, which is None for anonymous memory."""

    start: int
    end: int
    offset: int
    executable: bool
    file: MappedFile | None


class MappedFile:
    """A file that a task has mapped: ``address`` is that of its struct inode."""

    def __init__(self, file: Object) -> None:
        self._file = file
        self._inode = file.member("f_inode").target()
        self.address = self._inode.address

    @cached_property
    def path(self) -> str:
        """Where it lies in its file system; "" for one without a name."""
        names: list[str] = []
        entry = self._file.member("f_path").member("dentry").target()
        for _ in range(_MAX_DEPTH):
            parent = entry.member("d_parent").integer()
            name = entry.member("d_name").member("name").string()
            if parent == entry.address:
                # What is in no directory (a memfd) is the root of itself.
                return "/" + "/".join(reversed(names)) if names else name
            names.append(name)
            entry = entry.member("d_parent").target()
        return ".../" + "/".join(reversed(names))

    def open(self) -> CachedFile:
        """Its contents, as far as they are in memory."""
        return CachedFile(self._inode)


def find_mapping(kernel: Kernel, mm: int, address: int) -> Mapping | None:
    """The mapping of an address in the memory map ``mm`` (a struct mm_struct), or
    None. Raises GuestDataError or another KvmgdbError."""
    owner = kernel.object("mm_struct", mm)
    area = _from_tree(owner, address) if owner.has("mm_mt") else _from_list(owner, address)
    if area is None:
        return None
    area = area.snapshot()
    start, end = area.member("vm_start").integer(), area.member("vm_end").integer()
    if not start <= address < end:
        return None
    file = area.member("vm_file")
    return Mapping(
        start,
        end,
        area.member("vm_pgoff").integer() * PAGE,
        bool(area.member("vm_flags").integer() & _VM_EXEC),
        MappedFile(file.target()) if file.integer() else None,
    )


def _from_list(owner: Object, address: int) -> Object | None:
    """Until 6.0: a list by rising address."""
    pointer = owner.member("mmap")
    for _ in range(_MAX_MAPPINGS):
        if pointer.integer() == 0:
            return None
        area = pointer.target()
        if address < area.member("vm_end").integer():
            return area
        pointer = area.member("vm_next")
    raise GuestDataError(f"the list of mappings at {owner.address:#x} does not end")


def _from_tree(owner: Object, address: int) -> Object | None:
    kernel = owner.kernel
    entry = owner.member("mm_mt").member("ma_root").integer()
    # Only the root has the two bits by which an xarray tells nodes from entries.
    kind = entry >> 3 & 0xF if entry & 3 == 2 and entry > PAGE else None
    for _ in range(_MAX_LEVELS):
        if kind is None:
            return kernel.object("vm_area_struct", entry) if entry else None
        if kind not in _NODE_TYPES:
            raise GuestDataError(f"the maple tree of {owner.address:#x} has a node of type {kind}")
        node = kernel.object(_NODE_TYPES[kind], entry & _NODE_MASK).snapshot()
        entry = _slot(node, address)
        kind = None if kind == _LEAF_64 else entry >> 3 & 0xF
    raise GuestDataError(f"the maple tree of {owner.address:#x} does not end")


def _slot(node: Object, address: int) -> int:
    """The entry for an address: pivots are the last address of each slot."""
    pivots, slots = node.member("pivot"), node.member("slot")
    count = pivots.type.count
    index = 0
    while index < count:
        pivot = pivots.element(index).integer()
        # A zero pivot behind the first is one that is not used.
        if address <= pivot or (index and not pivot):
            break
        index += 1
    if index >= slots.type.count:
        raise NotFoundError(f"no slot for {address:#x}")
    return slots.element(index).integer()
