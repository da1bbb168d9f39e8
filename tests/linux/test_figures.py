"""Memory figures and tasks' page tables, compared with what the guest says."""

from __future__ import annotations

import re

from kvmgdb.linux.attach import stopped
from kvmgdb.linux.figures import memory_figures, task_paging
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.native import FrameSource
from kvmgdb.linux.stacks import Unwinder
from kvmgdb.linux.tasks import list_tasks
from kvmgdb.machine.interface import Machine
from tests.linux.probed import ProbedGuest

SYSCALL = b"\x0f\x05"


def _meminfo(text: str, name: str) -> int:
    match = re.search(rf"^{name}: +(\d+) kB$", text, re.MULTILINE)
    assert match
    return int(match[1]) << 10


def test_memory_figures(probed_guest: ProbedGuest, kernel: Kernel) -> None:
    figures = memory_figures(kernel)
    text = probed_guest.text("/proc/meminfo")
    assert figures.total == _meminfo(text, "MemTotal")
    # The guest has gone on since then.
    assert abs(figures.free - _meminfo(text, "MemFree")) < 16 << 20


def test_each_sleeping_task_is_behind_a_system_call(machine: Machine, kernel: Kernel) -> None:
    """Its stack says where it goes on in user mode; its page tables, what is there."""
    unwinder = Unwinder(kernel)
    checked = set()
    with stopped(machine):
        for task in list_tasks(kernel):
            paging = task_paging(kernel, task.object)
            assert (paging is None) is task.kernel
            if paging is None or task.running or task.state != "S":
                continue
            last = unwinder.of_sleeping(task.object).frames[-1].frame
            assert last.source is FrameSource.USER_REGISTERS
            assert kernel.memory.read_virtual(paging, last.ip - 2, 2) == SYSCALL
            checked.add(task.comm)
    assert {"in nanosleep", "in (pause)", "in-pipe", "in wait"} <= checked
