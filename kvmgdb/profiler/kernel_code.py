"""Functions of the guest's kernel and its modules, by address."""

from __future__ import annotations

import time

from kvmgdb.errors import KvmgdbError
from kvmgdb.linux.kernel import PAGE, Kernel
from kvmgdb.linux.modules import Module, ModuleList, list_modules
from kvmgdb.linux.native import SymbolTable
from kvmgdb.linux.stacks import symbol_size
from kvmgdb.profiler.recording import Frame, FrameKind
from kvmgdb.profiler.user_code import NamedCode

# Modules may be loaded while we look; their list is read again at most so often.
_REFRESH_SECONDS = 1.0
_MAX_FUNCTION = 1 << 20


class KernelCode:
    def __init__(self, kernel: Kernel, modules: ModuleList) -> None:
        self._kernel = kernel
        self._modules = modules
        self._read = time.monotonic()

    def name(self, address: int) -> NamedCode:
        """What is at a kernel address; never fails."""
        if address in self._kernel.text:
            named = _in_table(self._kernel.symbols, address, "", FrameKind.KERNEL)
            if named is not None:
                return named
        elif (module := self._module(address)) is not None:
            try:
                named = _in_table(module.symbols, address, module.name, FrameKind.MODULE)
            except KvmgdbError:
                named = None
            if named is not None:
                return named
            area = next(area for area in module.areas if address in area)
            code = range(area.base, area.base + area.size)
            return NamedCode(code, Frame("", module.name, FrameKind.MODULE, area.base))
        page = address & -PAGE
        return NamedCode(range(page, page + PAGE), Frame("", "", FrameKind.UNKNOWN, page))

    def _module(self, address: int) -> Module | None:
        found = self._modules.at(address)
        now = time.monotonic()
        if found is None and now - self._read > _REFRESH_SECONDS:
            self._read = now
            self._modules = list_modules(self._kernel)
            found = self._modules.at(address)
        return found


def _in_table(table: SymbolTable, address: int, module: str, kind: FrameKind) -> NamedCode | None:
    symbol = table.at(address)
    if symbol is None:
        return None
    size = symbol_size(table, symbol.index)
    if not size or size > _MAX_FUNCTION:
        size = address + 1 - symbol.address
    code = range(symbol.address, symbol.address + size)
    return NamedCode(code, Frame(symbol.name, module, kind, symbol.address))
