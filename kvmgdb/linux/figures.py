"""Memory of the guest as its kernel counts it, and the page tables of a task."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvmgdb.errors import NotFoundError
from kvmgdb.linux.kernel import PAGE, Kernel
from kvmgdb.linux.objects import Object
from kvmgdb.machine.native import Paging


@dataclass(frozen=True)
class MemoryFigures:
    """Bytes: what /proc/meminfo calls MemTotal and MemFree."""

    total: int
    free: int


def memory_figures(kernel: Kernel) -> MemoryFigures:
    """Raises NotFoundError where a kernel keeps them elsewhere. What single CPUs
    have counted and not yet added up is left out of ``free``, as in /proc/meminfo."""
    items = kernel.types.enumeration("zone_stat_item")
    if "NR_FREE_PAGES" not in items:
        raise NotFoundError("the guest's kernel has no count of free pages")
    zones = kernel.symbol("vm_zone_stat")
    free = kernel.u64(zones + 8 * items["NR_FREE_PAGES"])
    return MemoryFigures(
        total=kernel.u64(kernel.symbol("_totalram_pages")) * PAGE,
        free=(free if free < 1 << 63 else 0) * PAGE,
    )


def task_paging(kernel: Kernel, task: Object) -> Paging | None:
    """The page tables of a task's own memory, the kernel's half included; None for
    a kernel thread, which has none."""
    mm = task.member("mm")
    if mm.integer() == 0:
        return None
    table = mm.member("pgd").integer()
    root = kernel.memory.translate(kernel.paging, table).gpa
    return replace(kernel.paging, cr3=root)
