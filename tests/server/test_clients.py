"""Clients that vanish, and clients that are no debuggers."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.support.polling import wait_for
from tests.support.rsp import RawClient, frame
from tests.support.served import WatchedGuest
from tests.support.server import KvmgdbServer


def test_a_connection_that_says_nothing_does_not_stop_the_guest(
    server: KvmgdbServer, guest: WatchedGuest
) -> None:
    with RawClient(server.address) as silent:
        with RawClient(server.address) as noisy:
            noisy.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert guest.linux.makes_progress()
            assert guest.status == "running"
        assert silent.is_silent(0.1)
    assert not guest.has_stub


@pytest.mark.parametrize("part", [b"$", b"$m", b"$m0,10", b"$m0,10#", b"$m0,10#3"])
@pytest.mark.parametrize("abrupt", [False, True])
def test_vanishes_in_the_middle_of_a_packet(
    server: KvmgdbServer, guest: WatchedGuest, part: bytes, abrupt: bool
) -> None:
    with RawClient(server.address) as client:
        client.request(b"?")
        assert guest.status != "running"
        client.send(part)
        if abrupt:
            client.reset()
    server.wait_printed("debugger 1 .* is gone")
    guest.wait_given_back()


def test_vanishes_while_the_guest_runs(server: KvmgdbServer, guest: WatchedGuest, hot: int) -> None:
    with RawClient(server.address) as client:
        client.request(b"?")
        # Never reached: the guest runs.
        assert client.request(b"Z1,%x,1" % (hot - 0x100000)) == b"OK"
        client.send(frame(b"vCont;c"))
        wait_for("the guest runs", lambda: guest.status == "running")
    server.wait_printed("debugger 1 .* is gone")
    guest.wait_given_back()


def test_vanishes_with_breakpoints_set(server: KvmgdbServer, guest: WatchedGuest, hot: int) -> None:
    with RawClient(server.address) as client:
        client.request(b"?")
        for kind in range(3):
            assert client.request(b"Z%d,%x,1" % (kind, hot)) == b"OK"
        client.send(frame(b"vCont;c"))
        assert client.receive().startswith(b"T05")
    guest.wait_given_back()


def test_vanishes_right_after_it_lets_the_guest_run(
    server: KvmgdbServer, guest: WatchedGuest, hot: int
) -> None:
    for _ in range(3):
        with RawClient(server.address) as client:
            client.request(b"?")
            assert client.request(b"Z0,%x,1" % hot) == b"OK"
            client.send(frame(b"vCont;c"))
    guest.wait_given_back()


def test_vanishes_in_a_long_search(server: KvmgdbServer, guest: WatchedGuest) -> None:
    with RawClient(server.address) as client:
        client.request(b"?")
        client.send(frame(b"qSearch:memory:0;ffffffffffffffff;" + b"\1\2\3nowhere" * 9))
    guest.wait_given_back()


def test_two_at_once(server: KvmgdbServer, guest: WatchedGuest, hot: int) -> None:
    with RawClient(server.address) as first, RawClient(server.address) as second:
        for client in (first, second):
            client.request(b"?")
        assert first.request(b"g") == second.request(b"g")
        # A breakpoint belongs to who has set it.
        assert first.request(b"Z0,%x,1" % hot) == b"OK"
        assert second.request(b"z0,%x,1" % hot).startswith(b"E")
        first.send(frame(b"vCont;c"))
        second.send(frame(b"vCont;c"))
        assert first.receive().startswith(b"T05")
        assert second.is_silent(0.2)
        second.send(b"\x03")
        assert second.receive().startswith(b"T02")


def test_memory_needs_no_stop_of_ours_twice(server: KvmgdbServer, guest: WatchedGuest) -> None:
    """Requests of a debugger that has let the guest run are refused, not guessed."""
    with RawClient(server.address) as client:
        client.request(b"?")
        client.send(frame(b"vCont;c"))
        wait_for("the guest runs", lambda: guest.status == "running")
        assert client.request(b"g").startswith(b"E")
        assert client.request(b"Z0,1000,1").startswith(b"E")
        client.send(b"\x03")
        assert client.receive().startswith(b"T02")


def test_a_client_that_does_not_read(server: KvmgdbServer, guest: WatchedGuest) -> None:
    text = guest.symbol("_text")
    with RawClient(server.address) as client:
        client.request(b"QStartNoAckMode")
        request = frame(b"m%x,ffff" % text)
        with suppress(ConnectionError, TimeoutError):
            for _ in range(3000):
                client.send(request)
        server.wait_printed("does not read what it asks for: dropped")
    guest.wait_given_back()
