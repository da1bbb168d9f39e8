"""What to read of a guest for each sample, as its kernel has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from kvmgdb.errors import KvmgdbError, NotFoundError
from kvmgdb.linux.kernel import PAGE, Kernel
from kvmgdb.linux.tasks import cpu_of_vcpu, current_task_pointer
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.registers import Group
from kvmgdb.machine.sampling import SamplingPlan, StackArea

# CONFIG_KASAN doubles it; struct members tell neither.
_THREAD_SIZE = 16 << 10
_IRQ_STACK_SIZE = 16 << 10
_MAX_AREAS = 512
# struct pt_regs ends with sp and ss: an exception's stack begins with it.
_SAVED_SP = 16
_KERNEL_HALF = 1 << 63
_GROUPS = frozenset({Group.SEGMENT, Group.KERNEL_GS})
# How much of user mode's stack a chain of frame pointers is followed through.
_USER_BYTES = 8 << 10
_ANY_BYTES = 16 << 10


def plan_without_kernel() -> SamplingPlan:
    """For a guest of which nothing is known: what lies above the stack pointer."""
    return SamplingPlan(kernel_bytes=_ANY_BYTES)


def plan_for(machine: Machine, kernel: Kernel, user: bool) -> SamplingPlan:
    """For a Linux kernel; the machine must be stopped. ``user``: copy user stacks
    too. What the kernel does not tell is left out."""
    words: tuple[int, ...] = ()
    pointers: tuple[int, ...] = ()
    with suppress(NotFoundError):
        words = task_words(kernel)
        pointers = tuple(_task_pointers(machine, kernel))
    areas = [*_irq_stacks(kernel), *_exception_stacks(kernel)]
    return SamplingPlan(
        kernel_cr3=kernel.paging.cr3,
        stack_size=_THREAD_SIZE,
        kernel_bytes=_THREAD_SIZE,
        user_bytes=_USER_BYTES if user else 0,
        task_pointers=pointers,
        task_words=words,
        stack_word=len(words),
        areas=tuple(areas[:_MAX_AREAS]),
    )


def task_words(kernel: Kernel) -> tuple[int, ...]:
    """Offsets into task_struct: pid and tgid, comm in two words, mm, stack."""
    types = kernel.types
    comm = types.offset("task_struct", "comm")
    return (
        types.offset("task_struct", "pid"),
        comm,
        comm + 8,
        types.offset("task_struct", "mm"),
        types.offset("task_struct", "stack"),
    )


def _task_pointers(machine: Machine, kernel: Kernel) -> Iterator[int]:
    for vcpu in machine.vcpus:
        registers = vcpu.read_registers(_GROUPS)
        cpu = cpu_of_vcpu(kernel, registers.get("gs_base"), registers.get("k_gs_base"))
        yield 0 if cpu is None else current_task_pointer(kernel, cpu)


def _irq_stacks(kernel: Kernel) -> Iterator[StackArea]:
    """Interrupts run on a stack of each CPU, whose uppermost word is the stack
    pointer from before (arch/x86/include/asm/irq_stack.h)."""
    for cpu in range(kernel.cpu_count):
        try:
            if kernel.find_symbol("hardirq_stack_ptr") is not None:
                place = kernel.per_cpu("hardirq_stack_ptr", cpu)
            else:  # from 6.2 to 6.14
                offset = kernel.types.offset("struct pcpu_hot", "hardirq_stack_ptr")
                place = kernel.per_cpu("pcpu_hot", cpu) + offset
            pointer = kernel.u64(place)
        except KvmgdbError:
            continue  # a CPU that is not there
        # Until 5.11 it pointed to the end, since then to the last word.
        top = pointer if pointer % PAGE == 0 else pointer + 8
        if pointer >= _KERNEL_HALF and top % PAGE == 0:
            yield StackArea(top - _IRQ_STACK_SIZE, top, top - 8)


def _exception_stacks(kernel: Kernel) -> Iterator[StackArea]:
    """NMIs, machine checks and the like have stacks of their own
    (struct cea_exception_stacks)."""
    try:
        layout = kernel.types.named("struct cea_exception_stacks")
        members = [
            (member.offset, kernel.types.table.size(member.type))
            for member in kernel.types.table.members(layout.id)
            if member.name.endswith("_stack")
        ]
        for cpu in range(kernel.cpu_count):
            base = kernel.u64(kernel.per_cpu("cea_exception_stacks", cpu))
            if base < _KERNEL_HALF:
                continue
            for offset, size in members:
                if size:
                    top = base + offset + size
                    yield StackArea(base + offset, top, top - _SAVED_SP)
    except KvmgdbError:
        return
