"""What the tests of the server share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.qemu import TCG, Qemu
from tests.support.require import demand
from tests.support.served import WatchedGuest

# The name of the machine of the fixture ``firmware``, no other session's.
FIRMWARE = f"kvmgdb-firmware-{os.getpid()}"


@pytest.fixture
def hot(guest: WatchedGuest) -> int:
    """A kernel function that the guest calls thousands of times a second."""
    return guest.symbol("__x64_sys_getppid")


@pytest.fixture
def firmware() -> Iterator[Qemu]:
    """A machine of its own without a disk, running: its firmware waits for one."""
    demand(["qemu"])
    with Qemu(*TCG, "-m", "32M", "-name", FIRMWARE) as qemu:
        yield qemu
