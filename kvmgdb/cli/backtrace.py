"""``kvmgdb backtrace``: what the guest's CPUs execute, and where its tasks sleep."""

from __future__ import annotations

from dataclasses import dataclass

import click

from kvmgdb.cli.guest import attached, print_json, stopped_for
from kvmgdb.cli.terminal import echo, note
from kvmgdb.errors import KvmgdbError
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.figures import task_paging
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.stacks import Backtrace, Unwinder
from kvmgdb.linux.tasks import Task, cpu_of_vcpu, current_task, list_tasks, read_task
from kvmgdb.machine.interface import Vcpu
from kvmgdb.machine.registers import Group

_GROUPS = frozenset({Group.GENERAL, Group.SEGMENT, Group.KERNEL_GS})


@dataclass(frozen=True)
class _Stack:
    """A vCPU's stack, or that of a task that sleeps (``vcpu`` is None)."""

    vcpu: int | None
    task: Task | None
    trace: Backtrace


@click.command(
    short_help="Print the call stack of each vCPU, and of tasks.",
    epilog="Example: kvmgdb backtrace vm1 --all-tasks",
)
@click.argument("target", required=False)
@click.option("--all-tasks", is_flag=True, help="Every sleeping task too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def backtrace(target: str | None, all_tasks: bool, as_json: bool) -> None:
    """Print the call stack of each vCPU: the kernel's part by its own unwind tables,
    that of user mode by frame pointers.

    The guest is stopped while its stacks are read.
    """
    with attached(target) as machine:
        kernel = find_kernel(machine)
        unwinder = Unwinder(kernel)
        for problem in unwinder.problems:
            note(problem)
        damage = None
        with stopped_for(machine):
            stacks = [_of_vcpu(kernel, unwinder, vcpu) for vcpu in machine.vcpus]
            if all_tasks:
                damage = _add_sleeping(kernel, unwinder, stacks)
    if as_json:
        print_json({"stacks": [_facts(stack) for stack in stacks], "damage": damage})
        return
    if damage is not None:
        note(f"these are not all tasks: {damage}")
    for stack in stacks:
        _print(stack)


def _of_vcpu(kernel: Kernel, unwinder: Unwinder, vcpu: Vcpu) -> _Stack:
    registers = vcpu.read_registers(_GROUPS)
    task, paging = None, vcpu.paging()
    try:
        cpu = cpu_of_vcpu(kernel, registers.get("gs_base"), registers.get("k_gs_base"))
        if cpu is not None:
            task = read_task(current_task(kernel, cpu))
            # For a moment of a task switch, the vCPU has those of the next task already.
            paging = task_paging(kernel, task.object) or paging
    except KvmgdbError as error:
        note(f"vCPU {vcpu.index}: {error}")
    return _Stack(vcpu.index, task, unwinder.of_vcpu(registers, paging))


def _add_sleeping(kernel: Kernel, unwinder: Unwinder, stacks: list[_Stack]) -> str | None:
    tasks = list_tasks(kernel)
    for task in tasks:
        if task.running or task.state in "ZX":
            continue
        try:
            trace = unwinder.of_sleeping(task.object)
        except KvmgdbError as error:
            trace = Backtrace((), str(error))
        stacks.append(_Stack(None, task, trace))
    return tasks.damage


def _title(stack: _Stack) -> str:
    words = []
    if stack.vcpu is not None:
        words.append(f"vCPU {stack.vcpu}")
    if stack.task is not None:
        words.append(f"{stack.task.comm} (PID {stack.task.pid}, TID {stack.task.tid})")
        if stack.vcpu is None:
            words.append(f"state {stack.task.state}")
    return ", ".join(words)


def _print(stack: _Stack) -> None:
    echo(f"{_title(stack)}:")
    for number, frame in enumerate(stack.trace.frames):
        how = "" if frame.how in ("ORC", "registers") else f"  ({frame.how})"
        echo(f"  #{number:<3}{frame.frame.ip:#018x} {frame if frame.symbol else '?'}{how}")
    if stack.trace.broken is not None:
        echo(f"  the chain breaks here: {stack.trace.broken}")
    echo()


def _facts(stack: _Stack) -> dict[str, object]:
    task = stack.task
    return {
        "vcpu": stack.vcpu,
        "task": None if task is None else {"pid": task.pid, "tid": task.tid, "comm": task.comm},
        "frames": [
            {
                "ip": frame.frame.ip,
                "sp": frame.frame.sp,
                "symbol": frame.symbol,
                "offset": frame.offset if frame.symbol else None,
                "module": frame.module,
                "how": frame.how,
            }
            for frame in stack.trace.frames
        ],
        "broken": stack.trace.broken,
    }
