"""Backtraces of CPUs, compared with those that the guest's kernel prints at the very
same moment: sysrq-l, by an NMI on all CPUs but the one that asks."""

from __future__ import annotations

import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kvmgdb.demo.guest import GuestOptions
from kvmgdb.demo.kernel import Kernel as KernelFiles
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.log import read_log
from kvmgdb.linux.native import FrameSource
from kvmgdb.linux.stacks import NamedFrame, Unwinder
from kvmgdb.linux.tasks import cpu_of_vcpu
from kvmgdb.machine.interface import (
    Action,
    BreakpointKind,
    Machine,
    StopReason,
)
from kvmgdb.machine.registers import Group
from kvmgdb.machine.target import parse_target
from tests.linux.commands import ROOT
from tests.linux.probed import ProbedGuest
from tests.support.polling import wait_for

STOP_SECONDS = 90.0
LOG_SECONDS = 90.0
DUMP = "sysrq: Show backtrace of all active CPUs"
_GROUPS = frozenset({Group.GENERAL, Group.SEGMENT})
_FRAME = re.compile(r"^ (\S+\+0x[0-9a-f]+/0x[0-9a-f]+)(?: \[\w+\])?$")
_RIP = re.compile(r"^RIP: 0010:(\S+)$")


def run_to(machine: Machine, address: int) -> int:
    """Lets the guest run until one of its vCPUs comes to an instruction: which."""
    breakpoints = machine.breakpoints
    assert breakpoints is not None
    breakpoints.insert(BreakpointKind.HARDWARE, address, 1)
    machine.resume({vcpu.index: Action.CONTINUE for vcpu in machine.vcpus})
    deadline = time.monotonic() + STOP_SECONDS
    while (event := machine.poll()) is None:
        left = deadline - time.monotonic()
        assert left > 0, f"no vCPU came to {address:#x}"
        select.select(machine.event_fds, [], [], left)
    assert event.reason in (StopReason.BREAKPOINT, StopReason.HARDWARE_BREAKPOINT)
    breakpoints.remove(BreakpointKind.HARDWARE, address, 1)
    return event.vcpu


def stack_of(unwinder: Unwinder, machine: Machine, vcpu: int) -> tuple[int, list[NamedFrame]]:
    """The kernel's number of a CPU, and the kernel's part of its stack."""
    registers = machine.vcpus[vcpu].read_registers(_GROUPS)
    trace = unwinder.of_vcpu(registers, machine.vcpus[vcpu].paging())
    assert trace.broken is None, trace
    cpu = cpu_of_vcpu(unwinder.kernel, registers.get("gs_base"), registers.get("k_gs_base"))
    assert cpu is not None
    return cpu, [frame for frame in trace.frames if frame.symbol is not None]


def printed_stack(kernel: Kernel, machine: Machine, cpu: int, since: int) -> list[str]:
    """What the kernel prints of a CPU after a record of its log: where it was
    interrupted, and each frame that it is sure of."""

    def lines() -> list[str]:
        records = (record for record in read_log(kernel) if record.sequence > since)
        return [line for record in records for line in record.text.split("\n")]

    def block() -> list[str]:
        found = lines()
        begins = [i for i, line in enumerate(found) if line.startswith("NMI backtrace for cpu")]
        mine = f"NMI backtrace for cpu {cpu}"
        start = next((i for i in begins if found[i] == mine), None)
        if start is None:
            return []
        ends = (i for i, line in enumerate(found) if line.startswith(("sysrq: ", "NMI back")))
        end = next((i for i in ends if i > start), None)
        return found[start:end] if end is not None else []

    machine.resume({vcpu.index: Action.CONTINUE for vcpu in machine.vcpus})
    wait_for(f"the guest prints the stack of CPU {cpu}", lambda: bool(block()), LOG_SECONDS)
    machine.stop()
    matches = (_FRAME.match(line) or _RIP.match(line) for line in block())
    return [match[1] for match in matches if match]


def last_record(kernel: Kernel) -> int:
    return max(record.sequence for record in read_log(kernel))


def of_the_cpu_that_asks(kernel: Kernel, machine: Machine) -> None:
    """It calls the function that prints, which is where it stands."""
    vcpu = run_to(machine, kernel.symbol("nmi_cpu_backtrace"))
    cpu, frames = stack_of(Unwinder(kernel), machine, vcpu)
    said = printed_stack(kernel, machine, cpu, last_record(kernel))
    outer = next(i for i, line in enumerate(said) if line.startswith("nmi_trigger_cpumask"))
    assert [str(frame) for frame in frames[1:]] == said[outer:]
    assert frames[-1].symbol == "entry_SYSCALL_64_after_hwframe"
    assert len(frames) > 7


def of_an_interrupted_cpu(kernel: Kernel, machine: Machine) -> None:
    """It handles an NMI, and prints from where that came."""
    unwinder = Unwinder(kernel)
    while True:
        cpu, frames = stack_of(unwinder, machine, run_to(machine, kernel.symbol("show_regs")))
        entered = [i for i, frame in enumerate(frames) if frame.frame.source is FrameSource.ENTRY]
        if not entered or "exc_nmi" not in {frame.symbol for frame in frames}:
            continue  # it was in user mode, or says that it gets no time from the host
        # The kernel itself does not find out of thunks, nor of some entry code.
        inner = frames[entered[0] :]
        unsure = str(inner[0].symbol).startswith(("asm_", "entry_", "__x86_"))
        if not unsure and all(frame.frame.source is not FrameSource.STACK_TOP for frame in inner):
            break
    # The line before what it prints now.
    said = printed_stack(kernel, machine, cpu, last_record(kernel) - 1)
    assert [str(frame) for frame in inner] == said


@pytest.fixture(scope="module")
def printing_guest(linux_kernel: KernelFiles) -> Iterator[ProbedGuest]:
    append = "KVMGDB_STACKS=1 KVMGDB_LOAD=busy"
    options = GuestOptions(name="kvmgdb-stacks", memory=320, append=append)
    guest = ProbedGuest(linux_kernel, options)
    yield guest
    guest.close()


@pytest.mark.slow
@pytest.mark.parametrize("check", [of_the_cpu_that_asks, of_an_interrupted_cpu])
def test_stacks_are_what_the_guest_prints(
    printing_guest: ProbedGuest, check: Callable[[Kernel, Machine], None]
) -> None:
    machine = parse_target(str(printing_guest.pid)).open()
    try:
        machine.stop()
        check(find_kernel(machine), machine)
        machine.resume({vcpu.index: Action.CONTINUE for vcpu in machine.vcpus})
    finally:
        machine.close()


@pytest.mark.slow
def test_dmesg_follows(printing_guest: ProbedGuest) -> None:
    """What the guest logs while it is followed comes out, each message once, until
    Ctrl-C."""
    command = [sys.executable, "-m", "kvmgdb", "dmesg", str(printing_guest.pid)]
    before = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=60
    ).stdout.splitlines()
    with subprocess.Popen(
        [*command, "--follow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        lines: list[str] = []
        reader = threading.Thread(
            target=lambda: lines.extend(process.stdout or ()), daemon=True, name="dmesg"
        )
        reader.start()

        def followed() -> bool:
            assert process.poll() is None
            titles = {line.rstrip("\n") for line in lines if DUMP in line}
            return len(titles.difference(before)) >= 2

        try:
            wait_for("two more dumps are followed", followed, LOG_SECONDS)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
        reader.join(60)
    found = [line.rstrip("\n") for line in lines]
    assert before[-1] in found
    titles = [line for line in found if DUMP in line]
    assert len(titles) == len(set(titles))
    assert printing_guest.linux.qemu.running
