"""Contents of the guest's files, as far as its page cache holds them."""

from __future__ import annotations

from kvmgdb.errors import GuestDataError, NotFoundError
from kvmgdb.linux.kernel import PAGE, Kernel
from kvmgdb.linux.objects import Object

# struct xarray (include/linux/xarray.h): two low bits say what an entry is.
_TAG_MASK = 3
_INTERNAL = 2
_SLOT_BITS = 6
_SLOTS = 1 << _SLOT_BITS
_MAX_LEVELS = 11
# Without the randomisation of memory areas (Documentation/arch/x86/x86_64/mm.rst).
_VMEMMAP_BASE = 0xFFFFEA0000000000
_MAX_READ = 64 << 20


class CachedFile:
    """A file by its struct inode. Reading what is not cached is NotFoundError."""

    def __init__(self, inode: Object) -> None:
        self._kernel: Kernel = inode.kernel
        self.size = inode.member("i_size").integer()
        self._root = inode.member("i_mapping").member("i_pages").member("xa_head").integer()
        types = self._kernel.types
        self._node_size = types.size("xa_node")
        self._slots_at = types.offset("xa_node", "slots")
        self._shift_at = types.offset("xa_node", "shift")
        self._page_size = types.size("page")
        # Folios came with 5.16; before, the first page of several was as good.
        self._index_of = next(
            name for name in ("folio", "page") if types.has_member(f"struct {name}", "index")
        )
        self._index_at = types.offset(self._index_of, "index")
        base = self._kernel.find_symbol("vmemmap_base")
        self._pages = self._kernel.u64(base) if base is not None else _VMEMMAP_BASE
        self._nodes: dict[int, tuple[int, tuple[int, ...]]] = {}

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes, all of them. Raises NotFoundError or GuestDataError."""
        if offset < 0 or length < 0 or offset + length > self.size or length > _MAX_READ:
            raise GuestDataError(f"{length} bytes at {offset} do not lie in the file")
        data = bytearray()
        while len(data) < length:
            at = offset + len(data)
            step = min(PAGE - at % PAGE, length - len(data))
            data += self._kernel.memory.read(self._page(at // PAGE) + at % PAGE, step)
        return bytes(data)

    def _page(self, index: int) -> int:
        """Where (GPA) a page of the file lies."""
        entry = self._find(index)
        if entry == 0 or entry & 1:  # absent, or swapped out
            raise NotFoundError(f"page {index} of the file is not in memory")
        first = entry & ~_TAG_MASK
        number, rest = divmod(first - self._pages, self._page_size)
        if rest or not 0 <= number < 1 << 40:
            raise GuestDataError(f"{first:#x} is no page of memory")
        # One entry may stand for several pages: it is the first's.
        skipped = index - self._kernel.u64(first + self._index_at)
        if not 0 <= skipped < 1 << 20:
            raise GuestDataError(f"the page at {first:#x} is not of this file")
        return (number + skipped) * PAGE

    def _find(self, index: int) -> int:
        entry, shift = self._root, None
        for _ in range(_MAX_LEVELS):
            if entry & _TAG_MASK != _INTERNAL or entry <= PAGE:
                return entry if shift is not None or index == 0 else 0
            shift, slots = self._node(entry & ~_TAG_MASK)
            position = index >> shift
            if position >= _SLOTS and entry == self._root:
                return 0
            entry = slots[position % _SLOTS]
            if entry & _TAG_MASK == _INTERNAL and entry < _SLOTS << 2:
                entry = slots[entry >> 2]  # a sibling of the entry that counts
        raise GuestDataError("the page cache of the file has no end")

    def _node(self, address: int) -> tuple[int, tuple[int, ...]]:
        if address not in self._nodes:
            data = self._kernel.read(address, self._node_size)
            slots = data[self._slots_at : self._slots_at + 8 * _SLOTS]
            words = tuple(memoryview(slots).cast("Q"))
            if len(words) != _SLOTS:
                raise GuestDataError("the guest's kernel has other nodes in its page cache")
            self._nodes[address] = (data[self._shift_at], words)
        return self._nodes[address]
