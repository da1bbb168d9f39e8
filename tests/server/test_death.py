"""The server's own end: whatever it was doing, the guest goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.support.gdb import GdbSession
from tests.support.polling import wait_for
from tests.support.rsp import RawClient, frame
from tests.support.served import WatchedGuest
from tests.support.server import KvmgdbServer


@pytest.fixture
def client(server: KvmgdbServer, hot: int) -> Iterator[RawClient]:
    with RawClient(server.address) as client:
        assert client.request(b"?").startswith(b"T05")
        yield client


def _serve_again(guest: WatchedGuest, hot: int) -> None:
    """A new server attaches as if nothing had been."""
    with KvmgdbServer(str(guest.pid)) as server, RawClient(server.address) as client:
        client.request(b"?")
        assert client.request(b"Z0,%x,1" % hot) == b"OK"
        client.send(frame(b"vCont;c"))
        assert client.receive().startswith(b"T05")
        assert client.request(b"D") == b"OK"
    guest.wait_given_back()


def test_killed_while_idle(server: KvmgdbServer, guest: WatchedGuest, hot: int) -> None:
    server.kill()
    guest.wait_given_back()
    _serve_again(guest, hot)


def test_killed_while_the_guest_stands(
    client: RawClient, server: KvmgdbServer, guest: WatchedGuest, hot: int
) -> None:
    server.kill()
    guest.wait_given_back()
    _serve_again(guest, hot)


def test_killed_while_the_guest_runs_towards_a_breakpoint(
    client: RawClient, server: KvmgdbServer, guest: WatchedGuest, hot: int
) -> None:
    """Nobody is there any more when it is hit."""
    assert client.request(b"Z0,%x,1" % hot) == b"OK"
    assert client.request(b"Z1,%x,1" % hot) == b"OK"
    client.send(frame(b"vCont;c"))
    server.kill()
    guest.wait_given_back()
    _serve_again(guest, hot)


def test_killed_with_a_watchpoint_armed(
    client: RawClient, server: KvmgdbServer, guest: WatchedGuest, hot: int
) -> None:
    assert client.request(b"Z2,%x,8" % (hot & -4096)) == b"OK"
    client.send(frame(b"vCont;c"))
    wait_for("the guest runs", lambda: guest.status == "running")
    server.kill()
    guest.wait_given_back()


def test_killed_at_a_breakpoint(
    client: RawClient, server: KvmgdbServer, guest: WatchedGuest, hot: int
) -> None:
    assert client.request(b"Z0,%x,1" % hot) == b"OK"
    client.send(frame(b"vCont;c"))
    assert client.receive().startswith(b"T05")
    server.kill()
    guest.wait_given_back()
    _serve_again(guest, hot)


def test_killed_while_stepping(
    client: RawClient, server: KvmgdbServer, guest: WatchedGuest, hot: int
) -> None:
    client.send(frame(b"vCont;s:1"))
    server.kill()
    guest.wait_given_back()
    _serve_again(guest, hot)


def test_killed_while_physical_memory_is_selected(
    client: RawClient, server: KvmgdbServer, guest: WatchedGuest, hot: int
) -> None:
    assert client.request(b"Qqemu.PhyMemMode:1") == b"OK"
    assert client.request(b"Qqemu.sstep=1") == b"OK"
    server.kill()
    guest.wait_given_back()
    _serve_again(guest, hot)


def test_guest_that_was_paused_stays_paused(
    server: KvmgdbServer, guest: WatchedGuest, hot: int
) -> None:
    guest.qmp("stop")
    try:
        with RawClient(server.address) as client:
            client.request(b"?")
            server.kill()
            wait_for("the stub is gone", lambda: not guest.has_stub)
            assert guest.status == "paused"
    finally:
        guest.qmp("cont")


def test_gdb_is_told(gdb: GdbSession, server: KvmgdbServer, guest: WatchedGuest) -> None:
    gdb.connect(server.address)
    gdb.resume()
    wait_for("the guest runs", lambda: guest.status == "running")
    server.kill()
    wait_for("GDB knows", lambda: not gdb.mi("-thread-info")["threads"])
    guest.wait_given_back()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("running", [False, True])
def test_signal(
    client: RawClient,
    server: KvmgdbServer,
    guest: WatchedGuest,
    hot: int,
    number: signal.Signals,
    running: bool,
) -> None:
    assert client.request(b"Z0,%x,1" % hot) == b"OK"
    if running:
        client.send(frame(b"vCont;c"))
    assert server.signal(number) == 0
    assert not guest.has_stub
    guest.wait_given_back()
