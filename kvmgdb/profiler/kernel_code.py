"""Functions of the guest's kernel and its modules, by address, as they come and go."""

from __future__ import annotations

import time
from contextlib import suppress

from kvmgdb.errors import KvmgdbError
from kvmgdb.linux.kernel import PAGE, Kernel
from kvmgdb.linux.native import SymbolTable, UnwindTables
from kvmgdb.linux.stacks import Unwinder
from kvmgdb.profiler.recording import Frame, FrameKind
from kvmgdb.profiler.user_code import NamedCode

# Code that nothing names may have been loaded or generated meanwhile: it is looked
# for again after this time, and after twice that as long as nothing new is found.
_SEARCH_SECONDS = 0.5
_MOST_SECONDS = 60.0
_MAX_FUNCTION = 1 << 20


class KernelCode:
    """``tables`` unwind what it names; both are renewed by :meth:`renew`."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._links = self._read_links()
        self._unwinder = Unwinder(kernel)
        self._content = self._read_content(self._unwinder)
        self._wait = _SEARCH_SECONDS
        self._missing = False
        self._read = time.monotonic()

    @property
    def text(self) -> range:
        """The kernel's own code, which stays."""
        return self._kernel.text

    @property
    def tables(self) -> UnwindTables:
        return self._unwinder.tables

    @property
    def problems(self) -> list[str]:
        """What is amiss with the kernel's unwind tables."""
        return self._unwinder.problems

    def name(self, address: int) -> NamedCode:
        """What is at a kernel address; never fails."""
        return self._find(address) or _nothing(address)

    def renew(self, address: int | None = None) -> bool:
        """Whether modules have been loaded or code has been generated since, which is
        known from then on. It is looked for where the list of modules has changed, or
        where nothing is known of ``address``, though not each time."""
        links = self._read_links()
        if address is not None and self._find(address) is None:
            self._missing = True
        now = time.monotonic()
        changed = None not in (links, self._links) and links != self._links
        due = now >= self._read + self._wait and (self._missing or self._links is None)
        if not (changed or due):
            return False
        self._read, self._missing = now, False
        try:
            unwinder = Unwinder(self._kernel)
            content = self._read_content(unwinder)
        except KvmgdbError:
            return False
        # A module that is only being loaded lacks its tables: it is to be read again.
        self._links = links if unwinder.modules.damage is None and _all_live(unwinder) else None
        if content == self._content or len(unwinder.problems) > len(self.problems):
            self._wait = min(2 * self._wait, _MOST_SECONDS)
            return False
        self._wait = _SEARCH_SECONDS
        self._unwinder, self._content = unwinder, content
        return True

    def _read_links(self) -> tuple[int, ...] | None:
        """The head of the list of modules, which each one that is loaded changes."""
        head = self._kernel.find_symbol("modules")
        with suppress(KvmgdbError):
            return None if head is None else self._kernel.u64s(head, 2)
        return None

    def _read_content(self, unwinder: Unwinder) -> object:
        modules = [(module.address, module.areas, module.is_formed) for module in unwinder.modules]
        return modules, unwinder.generated.pieces

    def _find(self, address: int) -> NamedCode | None:
        if address in self._kernel.text:
            return _in_table(self._kernel.symbols, address, "", FrameKind.KERNEL)
        if (module := self._unwinder.modules.at(address)) is not None:
            with suppress(KvmgdbError):
                named = _in_table(module.symbols, address, module.name, FrameKind.MODULE)
                if named is not None:
                    return named
            area = next(area for area in module.areas if address in area)
            code = range(area.base, area.base + area.size)
            return NamedCode(code, Frame("", module.name, FrameKind.MODULE, area.base))
        if (piece := self._unwinder.generated.at(address)) is not None:
            code = range(piece.address, piece.address + piece.size)
            return NamedCode(code, Frame(piece.name, piece.owner, FrameKind.MODULE, code.start))
        return None


def _all_live(unwinder: Unwinder) -> bool:
    return all(module.state == "Live" for module in unwinder.modules)


def _nothing(address: int) -> NamedCode:
    page = address & -PAGE
    return NamedCode(range(page, page + PAGE), Frame("", "", FrameKind.UNKNOWN, page))


def _in_table(table: SymbolTable, address: int, module: str, kind: FrameKind) -> NamedCode | None:
    symbol = table.at(address)
    if symbol is None:
        return None
    size = table.size_of(symbol.index)
    if not size or size > _MAX_FUNCTION:
        size = address + 1 - symbol.address
    code = range(symbol.address, symbol.address + size)
    return NamedCode(code, Frame(symbol.name, module, kind, symbol.address))
