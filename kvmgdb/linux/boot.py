"""One boot of a kernel, told from a later one of the same kernel."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from kvmgdb.errors import KvmgdbError
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.locate import views_of
from kvmgdb.machine.native import Paging


class Boot:
    """Where KASLR has put the kernel, its first stack canary, which is random, and
    ticks that only rise tell a boot. What a kernel lacks of that is not compared.

    Only page tables that a vCPU uses now can tell: those of an earlier boot, and all
    that they lead to, may lie in RAM as they were.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._canary_at: int | None = None
        with suppress(KvmgdbError):
            offset = kernel.types.offset("task_struct", "stack_canary")
            self._canary_at = kernel.symbol("init_task") + offset
        self._ticks_at = kernel.find_symbol("jiffies_64")
        self._canary: int | None = None
        self._ticks = 0
        self.goes_on([kernel.paging])

    def goes_on(self, pagings: Sequence[Paging]) -> bool:
        """Whether a vCPU that has these control registers now runs this boot still."""
        first = self._kernel.location.extents[0].gpa
        views = views_of(self._kernel.memory, self._kernel.base, pagings)
        return any(gpa == first and self._is_same(table) for table, gpa in views)

    def _is_same(self, table: Paging) -> bool:
        canary, ticks = self._read(table, self._canary_at), self._read(table, self._ticks_at)
        # It is not set from the very beginning.
        if canary and self._canary and canary != self._canary:
            return False
        if ticks is not None and ticks < self._ticks:
            return False
        self._canary = canary or self._canary
        self._ticks = ticks or self._ticks
        return True

    def _read(self, table: Paging, address: int | None) -> int | None:
        """None where there is no such variable, or it is not mapped for user mode."""
        if address is None:
            return None
        try:
            return int.from_bytes(self._kernel.memory.read_virtual(table, address, 8), "little")
        except KvmgdbError:
            return None
