"""What the tests with GDB share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gdb import GdbSession
from tests.support.served import WatchedGuest
from tests.support.server import KvmgdbServer


@pytest.fixture
def hot(guest: WatchedGuest) -> int:
    """A kernel function that the guest calls thousands of times a second."""
    return guest.symbol("__x64_sys_getppid")


@pytest.fixture
def connected(gdb: GdbSession, hot: int, server: KvmgdbServer) -> Iterator[GdbSession]:
    """A GDB that holds the shared guest; it goes before the guest is checked."""
    gdb.connect(server.address)
    yield gdb
    gdb.close()
