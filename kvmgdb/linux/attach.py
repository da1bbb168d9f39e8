"""From a machine to its kernel: stopped for as long as registers are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kvmgdb.errors import NoKernelError, UnsupportedError
from kvmgdb.linux.kernel import Kernel
from kvmgdb.machine.interface import Action, Machine


@contextmanager
def stopped(machine: Machine) -> Iterator[None]:
    """Stops a machine, and lets it run again if it did."""
    was_running = machine.running
    machine.stop()
    try:
        yield
    finally:
        if was_running:
            machine.resume({vcpu.index: Action.CONTINUE for vcpu in machine.vcpus})


def find_kernel(machine: Machine) -> Kernel:
    """The Linux kernel of a machine, which is stopped for milliseconds if it runs.
    Raises NoKernelError, or UnsupportedError where physical memory is out of reach."""
    with stopped(machine):
        pagings = [paging for vcpu in machine.vcpus if (paging := vcpu.paging()) is not None]
    memory = machine.memory
    if memory is None:
        raise UnsupportedError("guest-physical memory cannot be reached through this target")
    if not pagings:
        raise NoKernelError("the control registers of the guest's vCPUs are not known")
    # All of physical memory is searched only where that takes seconds, not hours.
    return Kernel.find(memory, pagings, search=not memory.asks_for_each_read)
