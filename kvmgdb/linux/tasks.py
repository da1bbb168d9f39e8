"""Tasks: processes and their threads, and which of them runs on which CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kvmgdb.errors import GuestDataError, KvmgdbError, NotFoundError
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.objects import Object

# include/linux/sched.h; the letters are those of fs/proc/array.c.
_TASK_REPORT = 0x7F
_UNINTERRUPTIBLE = 0x02
_IDLE = 0x402
_RTLOCK_WAIT = 0x1000
_FROZEN = 0x8000
_LETTERS = "RSDTtXZP"
_PF_KTHREAD = 0x00200000
_MAX_THREADS = 1 << 17


@dataclass(frozen=True)
class Task:
    """A thread. ``pid`` is the process's ID (tgid), ``tid`` its own; ``cpu`` where
    it runs or ran last, ``running`` whether it does now. ``state`` is ps's letter,
    ``uid`` the user whose rights it has. ``object`` reads on in its task_struct."""

    pid: int
    tid: int
    parent: int
    comm: str
    state: str
    cpu: int
    running: bool
    kernel: bool
    uid: int
    object: Object = field(repr=False, compare=False)


@dataclass(frozen=True)
class TaskList:
    """The tasks, by the kernel's list; ``damage`` says why they may not be all."""

    tasks: tuple[Task, ...]
    damage: str | None = None

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


def list_tasks(kernel: Kernel, threads: bool = True) -> TaskList:
    """All tasks, or without ``threads`` only the first of each process; without
    the idle tasks. The guest may run meanwhile: where a list changes under our
    hands, what could be read of it."""
    found: list[Task] = []
    leader = kernel.variable("init_task", "task_struct")
    try:
        for entry in leader.member("tasks").list("task_struct", "tasks"):
            first = entry.snapshot()
            if not threads:
                found.append(read_task(first))
                continue
            for thread in _threads(kernel, first):
                found.append(read_task(thread))
                if len(found) > _MAX_THREADS:
                    raise GuestDataError(f"there are more than {_MAX_THREADS} tasks")
    except KvmgdbError as error:
        return TaskList(tuple(found), str(error))
    return TaskList(tuple(found))


def _threads(kernel: Kernel, leader: Object) -> Iterator[Object]:
    """The threads of a process, itself first. Most have one: then the list's
    head points to the very node that points back."""
    head = leader.member("signal").target().member("thread_head")
    node = leader.address + kernel.types.offset("task_struct", "thread_node")
    if kernel.u64s(head.address, 2) == (node, node):
        yield leader
        return
    for thread in head.list("task_struct", "thread_node"):
        yield thread.snapshot()


def read_task(task: Object) -> Task:
    """What matters of a task_struct, preferably of a snapshot of it."""
    flags = task.member("flags").integer()
    return Task(
        pid=task.member("tgid").integer(),
        tid=task.member("pid").integer(),
        parent=_parent(task),
        comm=task.member("comm").string(),
        state=state_letter(task),
        cpu=_cpu(task),
        running=bool(task.member("on_cpu").integer()) if task.has("on_cpu") else False,
        kernel=bool(flags & _PF_KTHREAD),
        uid=task.member("cred").target().member("uid").integer(),
        object=task,
    )


def _parent(task: Object) -> int:
    parent = task.member("real_parent")
    return parent.target().member("tgid").integer() if parent.integer() else 0


def _cpu(task: Object) -> int:
    """It moved from task_struct to thread_info with 5.16."""
    if task.member("thread_info").has("cpu"):
        return task.member("thread_info").member("cpu").integer()
    return task.member("cpu").integer() if task.has("cpu") else 0


def state_letter(task: Object) -> str:
    """The letter of /proc/PID/stat: get_task_state() of fs/proc/array.c."""
    state = task.member("__state" if task.has("__state") else "state").integer()
    if state & _IDLE == _IDLE:
        return "I"
    if state & (_RTLOCK_WAIT | _FROZEN):
        state = _UNINTERRUPTIBLE
    reported = (state | task.member("exit_state").integer()) & _TASK_REPORT
    return _LETTERS[reported.bit_length()]


def current_task_pointer(kernel: Kernel, cpu: int) -> int:
    """Where a CPU keeps the address of the task that it runs: a per-CPU variable of
    its own, but from 6.2 to 6.14 the first in ``pcpu_hot``. Raises NotFoundError."""
    for name, path in (("current_task", None), ("pcpu_hot", "current_task")):
        if kernel.find_symbol(name) is None:
            continue
        address = kernel.per_cpu(name, cpu)
        if path is not None:
            address += kernel.types.offset("struct pcpu_hot", path)
        return address
    raise NotFoundError("the guest's kernel does not tell which task runs")


def current_task(kernel: Kernel, cpu: int) -> Object:
    """The task that runs on a CPU."""
    pointer = kernel.u64(current_task_pointer(kernel, cpu))
    if pointer == 0:
        raise GuestDataError(f"CPU {cpu} has no current task")
    return kernel.object("task_struct", pointer)


def cpu_of_vcpu(kernel: Kernel, gs_base: int | None, kernel_gs_base: int | None) -> int | None:
    """The kernel's number of a CPU, from the GS bases of its vCPU: the kernel's is
    the offset of its per-CPU data. None where neither is a kernel's."""
    for base in (gs_base, kernel_gs_base):
        if base and base in kernel.cpu_offsets:
            return kernel.cpu_offsets.index(base)
    return None
