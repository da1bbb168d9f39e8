"""The guest's sleeping tasks as threads beside the vCPUs, on request.

The thread of a task has its thread ID plus 1,000,000. A task that sleeps has the
registers that the scheduler has saved, and no others; it cannot be stepped. (They
are no second process: GDB selects one that it finds, `continue` then means that
process alone, and GDB 13 and 18 wait for ever when a vCPU stops. GDB 13 does not ask
what its registers are, and no GDB lets go of it when its threads are gone.)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kvmgdb.errors import KvmgdbError, NotFoundError, UnsupportedError
from kvmgdb.linux.figures import task_paging
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.objects import Object
from kvmgdb.linux.tasks import Task, list_tasks
from kvmgdb.machine.interface import StopEvent, Vcpu
from kvmgdb.machine.native import Memory, Paging
from kvmgdb.machine.registers import Group, RegisterFile
from kvmgdb.rsp.guest import printable
from kvmgdb.rsp.threads import NoSuchThreadError, format_number

if TYPE_CHECKING:
    from kvmgdb.rsp.session import Session

_FIRST_THREAD = 1_000_000
_THREAD = re.compile(rb"(?:p1\.)?([0-9a-fA-F]{1,8})")
_KERNEL_HALF = 1 << 63
# struct inactive_task_frame (arch/x86/include/asm/switch_to.h) and GDB's names.
_SAVED = {
    "bp": "rbp",
    "bx": "rbx",
    "r12": "r12",
    "r13": "r13",
    "r14": "r14",
    "r15": "r15",
    "ret_addr": "rip",
}
_MAX_TASKS = 1 << 14
# PID_MAX_LIMIT (include/linux/threads.h)
_MAX_TID = 1 << 22


class SleepingTask(Vcpu):
    """A task as what register and memory packets are about. ``index`` is that of a
    vCPU, for what needs one."""

    def __init__(self, kernel: Kernel, task: Task, vcpu: Vcpu) -> None:
        self.index = vcpu.index
        self._kernel = kernel
        self._task = task
        self._vcpu = vcpu
        self._paging = task_paging(kernel, task.object) or kernel.paging
        self._registers = _saved_registers(kernel, task.object)

    def read_registers(self, groups: frozenset[Group]) -> RegisterFile:
        return self._registers

    def write_register(self, name: str, data: bytes) -> None:
        raise UnsupportedError("the registers of a sleeping task cannot be written")

    def read_memory(self, gva: int, length: int) -> bytes:
        data, error = self._kernel.memory.read_virtual_partial(self._paging, gva, length)
        if error is not None and not data:
            raise error
        return self._vcpu.hide_planted(self._paging, gva, data)

    def write_memory(self, gva: int, data: bytes) -> None:
        if gva < _KERNEL_HALF:
            raise UnsupportedError("the memory of a sleeping task cannot be written")
        self._vcpu.write_memory(gva, data)

    def memory_view(self) -> tuple[Memory, Paging] | None:
        return None if self._vcpu.memory_view() is None else (self._kernel.memory, self._paging)

    def paging(self) -> Paging | None:
        return self._paging


def _saved_registers(kernel: Kernel, task: Object) -> RegisterFile:
    """What __switch_to_asm has pushed, and the stack pointer above it."""
    file = RegisterFile()
    sp = task.member("thread").member("sp").integer()
    frame = kernel.object("inactive_task_frame", sp).snapshot()
    for theirs, ours in _SAVED.items():
        if frame.has(theirs):
            file.set(ours, frame.member(theirs).integer())
    file.set("rsp", sp + frame.size)
    return file


class TaskThreads:
    """The tasks that one debugger sees; none until it asks for them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.shown = False
        self._tasks: dict[int, Task] = {}
        self._listed_at: StopEvent | None = None

    def show(self) -> int:
        """From now on tasks are threads; how many there are. Raises NotFoundError
        where the guest's kernel is not known, or other KvmgdbErrors."""
        kernel = self._kernel()
        _ = kernel.types
        self.shown = True
        self._listed_at = None
        return len(self.tasks())

    def hide(self) -> None:
        self.shown = False
        self._tasks = {}

    def tasks(self) -> dict[int, Task]:
        """Those that sleep at this stop, by thread ID."""
        event = self._session.debuggee.last_stop
        if self.shown and event is not self._listed_at:
            self._listed_at = event
            try:
                listed = list(list_tasks(self._kernel()))[:_MAX_TASKS]
            except KvmgdbError:
                listed = []
            self._tasks = {
                task.tid: task for task in listed if not task.running and 0 < task.tid < _MAX_TID
            }
        return self._tasks

    def claims(self, thread: bytes) -> bool:
        """Whether a thread id can only be that of a task."""
        match = _THREAD.fullmatch(thread)
        return match is not None and int(match[1], 16) >= _FIRST_THREAD

    def find(self, thread: bytes) -> Task:
        """The task of a thread id. Raises NoSuchThreadError."""
        match = _THREAD.fullmatch(thread)
        found = self.tasks().get(int(match[1], 16) - _FIRST_THREAD) if match else None
        if found is None:
            raise NoSuchThreadError(thread)
        return found

    def select(self, thread: bytes) -> SleepingTask:
        """As :meth:`find`, with registers. Raises KvmgdbError."""
        task = self.find(thread)
        vcpu = self._session.machine.vcpus[self._session.current_index]
        return SleepingTask(self._kernel(), task, vcpu)

    def format(self, task: Task) -> str:
        return format_number(self._session, _FIRST_THREAD + task.tid)

    def name(self, task: Task) -> str:
        return f"{printable(task.comm)} pid {task.tid}"

    def _kernel(self) -> Kernel:
        guest = self._session.debuggee.guest
        kernel = guest.find(self._session.machine)
        if kernel is None:
            raise NotFoundError(f"the guest's kernel is not known: {guest.why_not}")
        return kernel
