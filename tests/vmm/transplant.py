"""A stock Linux guest inside our own VMM, on any host with KVM.

It boots under QEMU's translator, which needs nothing of the host. Its memory and
the registers that say where its kernel is then go into a paused machine of ours,
through the same attachment that every debugger uses. The machine stays paused,
because its timers are not those that the guest has set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kvmgdb.demo.guest import GuestOptions
from kvmgdb.demo.kernel import Kernel as KernelFiles
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.stacks import Unwinder
from kvmgdb.machine.interface import Action, Machine
from kvmgdb.machine.registers import Group
from kvmgdb.machine.target import parse_target
from tests.linux.probed import ProbedGuest
from tests.vmm.vmm import GUESTS, Vmm

_MEBIBYTE = 1 << 20
_MEMORY = 256  # MiB
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip")
_NUMBERED = tuple(f"r{number}" for number in range(8, 16))
# EFER before the rest: it says what CR4 may be.
_SYSTEM = ("efer", "cr0", "cr4", "cr3", "fs_base", "gs_base", "k_gs_base")
# Frames of the kernel that the moment of the transplant has at least.
_DEEP = 4
_TRIES = 5000


@dataclass(frozen=True)
class Transplanted:
    """``trace``: the symbols of the vCPU's stack, as they were before."""

    pid: int
    source: ProbedGuest
    trace: list[str]


@contextmanager
def linux_in_own_vmm(kernel: KernelFiles) -> Iterator[Transplanted]:
    """The guest, and what it had said of itself."""
    options = GuestOptions(name="kvmgdb-donor", vcpus=1, memory=_MEMORY, append="KVMGDB_LOAD=busy")
    source = ProbedGuest(kernel, options)
    try:
        donor = parse_target(str(source.pid)).open()
        try:
            trace = _stop_inside_the_kernel(donor)
            # In long mode from its first instruction.
            with Vmm("-m", f"{_MEMORY}M", "-S", GUESTS / "bootinfo-linux.elf") as vmm:
                receiver = parse_target(str(vmm.process.pid)).open()
                try:
                    receiver.stop()
                    _copy(donor, receiver)
                finally:
                    receiver.close()
                yield Transplanted(vmm.process.pid, source, trace)
        finally:
            donor.close()
    finally:
        source.close()


def _stop_inside_the_kernel(machine: Machine) -> list[str]:
    unwinder = Unwinder(find_kernel(machine))
    groups = frozenset({Group.GENERAL, Group.SEGMENT})
    for _ in range(_TRIES):
        machine.stop()
        (vcpu,) = machine.vcpus
        trace = unwinder.of_vcpu(vcpu.read_registers(groups), vcpu.paging())
        names = [frame.symbol for frame in trace.frames if frame.symbol is not None]
        if len(names) >= _DEEP:
            return names
        machine.resume({0: Action.CONTINUE})
    raise AssertionError("the guest was never deep in its kernel")


def _copy(donor: Machine, receiver: Machine) -> None:
    assert donor.memory is not None
    for at in range(0, _MEMORY * _MEBIBYTE, _MEBIBYTE):
        data, _ = donor.memory.read_partial(at, _MEBIBYTE)
        if data.strip(b"\0"):
            receiver.write_physical(at, data.ljust(_MEBIBYTE, b"\0"))
    registers = donor.vcpus[0].read_registers(frozenset(Group))
    for name in (*_SYSTEM, *_GENERAL, *_NUMBERED):
        value = registers.get(name)
        assert value is not None, name
        receiver.vcpus[0].write_register(name, value.to_bytes(8, "little"))
