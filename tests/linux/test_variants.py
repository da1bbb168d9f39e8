"""The same kernel, started in other ways: what is found must not depend on it."""

from __future__ import annotations

import pytest

from kvmgdb.demo.guest import GuestOptions
from kvmgdb.demo.kernel import Kernel as KernelFiles
from kvmgdb.linux.attach import find_kernel, stopped
from kvmgdb.linux.identity import LINKED_AT, identify
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.locate import locate
from kvmgdb.linux.stacks import Unwinder
from kvmgdb.linux.tasks import list_tasks
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.native import PagingMode
from kvmgdb.machine.registers import Group
from kvmgdb.machine.target import parse_target
from tests.linux.fixtures import StartProbed
from tests.linux.probed import ProbedGuest
from tests.linux.test_state import check_log, check_modules
from tests.linux.test_symbols import own_symbols

SAMPLES = 60
# A stop inside a retpoline is not unwound yet: a single frame is all there is.
THUNKS = "__x86_indirect_thunk"
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
    assert {"compute", "in-pipe"} <= {task.comm for task in list_tasks(kernel)}
    check_running_code(kernel, machine)
    return kernel


def check_running_code(kernel: Kernel, machine: Machine) -> None:
    """Wherever the vCPUs are stopped, each chain comes to an end that it can have:
    user mode, or the code that starts a CPU or a kernel thread; or the entry code
    itself, for the few instructions in which it has no stack of the kernel."""
    unwinder = Unwinder(kernel)
    entry = range(kernel.symbol("__entry_text_start"), kernel.symbol("__entry_text_end"))
    groups = frozenset({Group.GENERAL, Group.SEGMENT})
    entered_from_user = in_thunks = 0
    for _ in range(SAMPLES):
        with stopped(machine):
            for vcpu in machine.vcpus:
                registers = vcpu.read_registers(groups)
                trace = unwinder.of_vcpu(registers, vcpu.paging())
                last = trace.frames[-1]
                if len(trace.frames) == 1 and str(last.symbol).startswith(THUNKS):
                    in_thunks += 1
                    continue
                assert trace.broken is None, trace
                assert (
                    last.symbol in OUTERMOST
                    or last.frame.ip < 1 << 63
                    or (last.frame.ip in entry and len(trace.frames) == 1)
                ), trace
                kernel_frames = sum(frame.symbol is not None for frame in trace.frames)
                entered_from_user += last.symbol is None and kernel_frames > 1
    assert entered_from_user > 0
    assert in_thunks <= SAMPLES // 10


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
        assert (kernel.base == LINKED_AT) is ("nokaslr" in append)
        assert machine.memory is not None
        # Without any register: by the page tables that lie in physical memory.
        searched = locate(machine.memory, [])
        assert (searched.base, searched.paging.mode) == (kernel.base, mode)
    finally:
        machine.close()
