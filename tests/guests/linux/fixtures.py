"""Fixtures: a booted Linux guest, shared or fresh."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from kvmgdb.demo.guest import GuestOptions, LinuxGuest
from kvmgdb.demo.kernel import Kernel, fetch_kernel
from tests.support import background
from tests.support.require import demand

StartGuest = Callable[..., LinuxGuest]


@pytest.fixture(scope="session")
def linux_kernel() -> Kernel:
    """The kernel of Debian's cloud images."""
    demand(["qemu", "cc"])
    return fetch_kernel()


@pytest.fixture(scope="session")
def _shared_guest(linux_kernel: Kernel) -> Iterator[LinuxGuest]:
    with LinuxGuest(linux_kernel, GuestOptions(name="kvmgdb-shared")) as guest:
        guest.wait_ready()
        background.share("_shared_guest", lambda: guest.pid)
        yield guest


@pytest.fixture
def linux_guest(_shared_guest: LinuxGuest) -> Iterator[LinuxGuest]:
    """A guest that all tests share, with two vCPUs and KASLR. A test must leave it
    running: that it still makes progress is checked after each."""
    yield _shared_guest
    assert _shared_guest.makes_progress(), "a test left the shared guest stopped or broken"


@pytest.fixture
def start_linux_guest(linux_kernel: Kernel) -> Iterator[StartGuest]:
    """Starts fresh guests, with the arguments of GuestOptions; they end with the test.
    ``kernel`` is another kernel than the default."""
    with ExitStack() as guests:

        def start(kernel: Kernel = linux_kernel, **options: object) -> LinuxGuest:
            chosen = GuestOptions(**options)  # type: ignore[arg-type]
            guest = guests.enter_context(LinuxGuest(kernel, chosen))
            guest.wait_ready()
            return guest

        yield start
