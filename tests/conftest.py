"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import background, leftovers
from tests.support.gdb import GdbSession
from tests.support.require import NEEDS, PYPI_GDB, SYSTEM_GDB, demand, required

pytest_plugins = ["tests.guests.linux.fixtures", "tests.support.served"]

_GDBS = {"gdb": SYSTEM_GDB, "gdb18": PYPI_GDB}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requires(*needs): what the test needs of the machine")
    required()  # an unknown need is an error now, not at the first test that asks
    leftovers.mark_session()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("requires"):
        unknown = set(marker.args) - set(NEEDS)
        if unknown:
            raise pytest.UsageError(f"{item.nodeid} requires unknown {', '.join(sorted(unknown))}")
        demand(marker.args)
    background.give_way(item.fixturenames if isinstance(item, pytest.Function) else ())


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    found = leftovers.collect()
    for leftover in found:
        print(f"\nleft running by the tests: {leftover.pid} {leftover.command}")
    if found and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(params=list(_GDBS), scope="session")
def gdb_path(request: pytest.FixtureRequest) -> str:
    """Each GDB that must work: the system's, and the newest."""
    need = str(request.param)
    demand([need])
    return _GDBS[need]


@pytest.fixture
def gdb(gdb_path: str) -> Iterator[GdbSession]:
    """A GDB that waits for commands, for each of :func:`gdb_path`."""
    with GdbSession(gdb_path) as session:
        yield session
