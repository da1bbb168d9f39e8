"""A guest that has said what it knows, and its kernel as we see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from kvmgdb.demo.guest import GuestOptions
from kvmgdb.demo.kernel import Kernel as KernelFiles
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.kernel import Kernel
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.target import parse_target
from tests.linux.probed import ProbedGuest
from tests.support import background

StartProbed = Callable[..., ProbedGuest]


@pytest.fixture(scope="session")
def probed_guest(linux_kernel: KernelFiles) -> Iterator[ProbedGuest]:
    """The stock kernel with two vCPUs and KASLR, shared by all tests."""
    guest = ProbedGuest(linux_kernel, GuestOptions(name="kvmgdb-probed", memory=320))
    background.share("probed_guest", lambda: guest.pid)
    yield guest
    guest.close()


@pytest.fixture
def start_probed() -> Iterator[StartProbed]:
    """Starts guests of other kernels or with other options; they end with the test."""
    with ExitStack() as guests:

        def start(kernel: KernelFiles, options: GuestOptions) -> ProbedGuest:
            guest = ProbedGuest(kernel, options)
            guests.callback(guest.close)
            return guest

        yield start


@pytest.fixture
def machine(probed_guest: ProbedGuest) -> Iterator[Machine]:
    """The shared guest, attached to; given back after each test."""
    machine = parse_target(str(probed_guest.pid)).open()
    yield machine
    machine.close()
    assert probed_guest.linux.makes_progress(), "a test left the probed guest stopped or broken"


@pytest.fixture
def kernel(machine: Machine) -> Kernel:
    """The shared guest's kernel."""
    return find_kernel(machine)
