"""The same kernel, started in other ways: what is found must not depend on it."""

from __future__ import annotations

import pytest

from kvmgdb.demo.guest import GuestOptions
from kvmgdb.demo.kernel import Kernel as KernelFiles
from kvmgdb.linux.attach import find_kernel, stopped
from kvmgdb.linux.figures import task_paging
from kvmgdb.linux.identity import LINKED_AT, identify
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.locate import locate
from kvmgdb.linux.stacks import Unwinder
from kvmgdb.linux.tasks import current_task, list_tasks
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.native import PagingMode
from kvmgdb.machine.registers import Group
from kvmgdb.machine.target import parse_target
from kvmgdb.symbols import build_vmlinux
from tests.linux.fixtures import StartProbed
from tests.linux.probed import ProbedGuest
from tests.linux.test_state import check_log, check_modules
from tests.linux.test_symbols import own_symbols

SAMPLES = 500
# What a guest that gets little of the host's time may need until it was seen everywhere.
MOST_SAMPLES = 20_000
SYSCALL = b"\x0f\x05"
# Where user mode goes on behind the instruction that it called the kernel with.
SYSCALL_CODE = ("entry_SYSCALL_64", "syscall_return_via_sysret", "entry_SYSRETQ")
# Where the code of a CPU's idle task, and that of a kernel thread, was started.
OUTERMOST = {
    "secondary_startup_64_no_verify",
    "common_startup_64",
    "ret_from_fork",
    "ret_from_fork_asm",
}


def check_everything(guest: ProbedGuest, machine: Machine) -> Kernel:
    kernel = find_kernel(machine)
    found = [(symbol.address, symbol.type, symbol.name) for symbol in kernel.symbols]
    assert found == own_symbols(guest)
    identity = identify(kernel)
    assert identity.banner == guest.text("/proc/version").strip()
    assert identity.disagreements == ()
    check_modules(guest, kernel)
    check_log(guest, kernel)
    with stopped(machine):
        assert {"compute", "in-pipe"} <= {task.comm for task in list_tasks(kernel)}
    check_running_code(kernel, machine)
    return kernel


def check_running_code(kernel: Kernel, machine: Machine) -> None:
    """Wherever the vCPUs are stopped, in thunks and entry code too, each chain comes
    to an end that it can have: user mode, or the code that starts a CPU or a kernel
    thread. Where it went through a system call, that is what user mode did."""
    unwinder = Unwinder(kernel)
    groups = frozenset({Group.GENERAL, Group.SEGMENT})
    from_user = system_calls = 0
    for sample in range(MOST_SAMPLES):
        if sample >= SAMPLES and from_user and system_calls:
            break
        with stopped(machine):
            for vcpu in machine.vcpus:
                registers = vcpu.read_registers(groups)
                trace = unwinder.of_vcpu(registers, vcpu.paging())
                assert trace.broken is None, trace
                inner = [frame for frame in trace.frames if frame.frame.ip >> 63]
                outer = trace.frames[len(inner) :]
                if not outer:
                    assert inner[-1].symbol in OUTERMOST, trace
                    continue
                assert outer[0].how in ("registers", "user mode"), trace
                from_user += bool(inner)
                if any(str(frame.symbol).startswith("__switch_to") for frame in inner):
                    continue  # the stack may be another task's than the kernel's word is
                if inner and str(inner[-1].symbol).startswith(SYSCALL_CODE):
                    ip = outer[0].frame.ip
                    assert _user_code(kernel, vcpu.index, ip - 2) == SYSCALL, trace
                    system_calls += 1
    assert from_user > 0
    assert system_calls > 0


def _user_code(kernel: Kernel, cpu: int, address: int) -> bytes:
    """Two bytes of the program that a CPU executes."""
    paging = task_paging(kernel, current_task(kernel, cpu))
    assert paging is not None
    return kernel.memory.read_virtual(paging, address, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vcpus", "append", "cpu", "mode"),
    [
        (1, "nokaslr", "max,-cx16,-la57", PagingMode.LEVEL4),
        (4, "pti=on", "max,-cx16,-la57", PagingMode.LEVEL4),
        (2, "", "max", PagingMode.LEVEL5),
    ],
    ids=["nokaslr", "pti", "five-levels"],
)
def test_variant(
    start_probed: StartProbed,
    linux_kernel: KernelFiles,
    vcpus: int,
    append: str,
    cpu: str,
    mode: PagingMode,
) -> None:
    options = GuestOptions(
        name="kvmgdb-variant",
        vcpus=vcpus,
        memory=320,
        append=f"{append} KVMGDB_LOAD=busy",
        accelerator=("-accel", "tcg", "-cpu", cpu),
    )
    guest = start_probed(linux_kernel, options)
    machine = parse_target(str(guest.pid)).open()
    try:
        kernel = check_everything(guest, machine)
        assert kernel.location.paging.mode is mode
        assert kernel.cpus() == list(range(vcpus))
        assert kernel.base == LINKED_AT or "nokaslr" not in append
        assert machine.memory is not None
        assert build_vmlinux(kernel).warnings == ()
        # Without any register: by the page tables that lie in physical memory.
        searched = locate(machine.memory, [])
        assert (searched.base, searched.paging.mode) == (kernel.base, mode)
    finally:
        machine.close()
