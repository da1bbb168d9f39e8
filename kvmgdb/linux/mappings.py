"""What a task's addresses stand for: its mappings, and the files behind them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

from kvmgdb.errors import GuestDataError
from kvmgdb.linux.kernel import PAGE, Kernel
from kvmgdb.linux.objects import Object
from kvmgdb.linux.page_cache import CachedFile

_VM_EXEC = 4  # include/linux/mm.h
_LAST = (1 << 64) - 1
_MAX_DEPTH = 64
# The maple tree (include/linux/maple_tree.h): an entry that is a node has its
# type in bits 3 to 6, and its address above the lowest 8.
_MAX_LEVELS = 31
_NODE_MASK = ~0xFF & _LAST
_NODE_TYPES = {1: "maple_range_64", 2: "maple_range_64", 3: "maple_arange_64"}
_LEAF_64 = 1
_NODE_SIZE = 256
# As deep as a red-black tree of 2^32 mappings.
_MAX_BRANCHES = 64
_MAX_FILES = 4096
_AREA = ("vm_start", "vm_end", "vm_pgoff", "vm_flags", "vm_file")


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


class Mappings:
    """The memory maps of all tasks of a kernel. Raises NotFoundError where the kernel's
    types do not tell how it keeps them."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        types = kernel.types
        self._area_size = types.size("vm_area_struct")
        self._area_at = [types.offset("vm_area_struct", name) for name in _AREA]
        self._has_tree = types.has_member("mm_struct", "mm_mt")
        if self._has_tree:
            self._root_at = types.offset("mm_struct", "mm_mt.ma_root")
            self._nodes = {kind: _node(kernel, name) for kind, name in _NODE_TYPES.items()}
        else:
            self._root_at = types.offset("mm_struct", "mm_rb.rb_node")
            self._branch_at = types.offset("vm_area_struct", "vm_rb")
            self._left_at = types.offset("rb_node", "rb_left")
            self._right_at = types.offset("rb_node", "rb_right")
        self._inode_at = types.offset("file", "f_inode")
        self._dentry_at = types.offset("file", "f_path.dentry")
        self._files: dict[tuple[int, int], MappedFile] = {}

    def find(self, mm: int, address: int) -> Mapping | range:
        """The mapping of an address in the memory map ``mm`` (GVA of a struct mm_struct),
        or the addresses around it that have none. Raises GuestDataError or another
        KvmgdbError."""
        root = self._kernel.u64(mm + self._root_at)
        around, area = (
            self._in_maple(root, address) if self._has_tree else self._in_red_black(root, address)
        )
        if not area:
            return around
        start, end, offset, flags, file = self._fields(area)
        if not start <= address < end:
            raise GuestDataError(f"the mapping at {area:#x} is not that of {address:#x}")
        mapped = self._file(file) if file else None
        return Mapping(start, end, offset * PAGE, bool(flags & _VM_EXEC), mapped)

    def _fields(self, area: int) -> list[int]:
        data = self._kernel.read(area, self._area_size)
        return [int.from_bytes(data[at : at + 8], "little") for at in self._area_at]

    def _file(self, file: int) -> MappedFile:
        """A struct file may become another's: what it names is looked at each time."""
        key = (
            self._kernel.u64(file + self._inode_at),
            self._kernel.u64(file + self._dentry_at),
        )
        if key not in self._files:
            if len(self._files) >= _MAX_FILES:
                self._files.clear()
            self._files[key] = MappedFile(self._kernel.object("file", file))
        return self._files[key]

    def _in_maple(self, root: int, address: int) -> tuple[range, int]:
        low, high = 0, _LAST
        # Only the root has the two bits by which an xarray tells nodes from entries.
        entry, kind = root, root >> 3 & 0xF
        if root & 3 != 2 or root <= PAGE:
            return range(low, high), 0
        for _ in range(_MAX_LEVELS):
            if kind not in self._nodes:
                raise GuestDataError(f"a maple tree has a node of type {kind}")
            pivot_at, slot_at, pivot_count = self._nodes[kind]
            data = self._kernel.read(entry & _NODE_MASK, _NODE_SIZE)
            pivots = struct.unpack_from(f"<{pivot_count}Q", data, pivot_at)
            index = 0
            # Pivots are the last address of each slot; a zero behind the first is unused.
            while index < pivot_count and address > pivots[index] and (pivots[index] or not index):
                index += 1
            if index:
                low = max(low, pivots[index - 1] + 1)
            if index < pivot_count and (pivots[index] or not index):
                high = min(high, pivots[index])
            (entry,) = struct.unpack_from("<Q", data, slot_at + 8 * index)
            if kind == _LEAF_64:
                return range(min(low, address), max(high, address) + 1), entry
            kind = entry >> 3 & 0xF
        raise GuestDataError("a maple tree does not end")

    def _in_red_black(self, root: int, address: int) -> tuple[range, int]:
        """Until 6.0."""
        low, high = 0, _LAST
        branch = root
        for _ in range(_MAX_BRANCHES):
            if not branch:
                return range(low, high + 1), 0
            area = branch - self._branch_at
            start, end, *_ = self._fields(area)
            if start <= address < end:
                return range(start, end), area
            if address < start:
                high = min(high, start - 1)
                branch = self._kernel.u64(branch + self._left_at)
            else:
                low = max(low, end)
                branch = self._kernel.u64(branch + self._right_at)
        raise GuestDataError("a tree of mappings does not end")


def _node(kernel: Kernel, name: str) -> tuple[int, int, int]:
    """Of a kind of node of maple trees: where its pivots are, and its slots, of which
    there is one more; and how many pivots."""
    pivot, slot = kernel.types.offset(name, "pivot"), kernel.types.offset(name, "slot")
    count = (slot - pivot) // 8
    if not 0 < count < 31 or slot + 8 * (count + 1) > _NODE_SIZE:
        raise GuestDataError("the guest's kernel has other nodes in its maple trees")
    return pivot, slot, count
