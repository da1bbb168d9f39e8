"""Memory reads that are answered without the session: as it would answer them."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from kvmgdb.machine.registers import BY_NAME
from kvmgdb.rsp.native import Attendant
from tests.machine.rom_guest import COUNTERS, HIGH, HIGH_PAGES, RomGuest
from tests.rsp.conftest import NewClient
from tests.rsp.wire import Client, frame

PAGE = 0x1000
_ANSWERED_AT_MOST = 4096


class Pair:
    """A session, and beside it what answers for it, with a connection of its own."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._debugger, self._server = socket.socketpair()
        self._debugger.setblocking(False)
        self._attendant = Attendant()
        assert client.ask(b"QStartNoAckMode") == b"OK"

    def attend(self, data: bytes) -> tuple[bytes, bytes]:
        """What was left for the session of ``data``, and what was answered."""
        self._debugger.sendall(data)
        view = self.client.session.memory_view()
        count, unsent = self._attendant.attend(self._server.fileno(), view, 0.001, 5.0)
        assert unsent == b""
        left = bytes(self._attendant.buffer[:count])
        try:
            return left, self._debugger.recv(1 << 16)
        except BlockingIOError:
            return left, b""

    def ask_session(self, data: bytes) -> bytes:
        self.client.wire.take_raw()
        self.client.feed(data)
        return self.client.wire.take_raw()

    def same(self, payload: bytes) -> bytes:
        """The answer to a read, which both must give; the session's frame."""
        left, answer = self.attend(frame(payload))
        assert left == b"", payload
        assert answer == self.ask_session(frame(payload)), payload
        return answer

    def left(self, data: bytes) -> bytes:
        """What only the session answers."""
        assert self.attend(data) == (data, b"")
        return self.ask_session(data)

    def close(self) -> None:
        self._debugger.close()
        self._server.close()


@pytest.fixture
def pair(client: Client) -> Iterator[Pair]:
    pair = Pair(client)
    yield pair
    pair.close()


def test_both_answer_alike(pair: Pair, rom_guest: RomGuest) -> None:
    work = rom_guest.symbol("work")
    chance = random.Random(1)
    places = [work, COUNTERS, HIGH, HIGH + PAGE - 8, HIGH + 4 * PAGE - 64, 0xFFF, 0x1FFFFF]
    for command in (b"m", b"x"):
        for address in places:
            for length in (1, 2, 7, 16, 64, 0x40 + chance.randrange(200)):
                pair.same(b"%b%x,%x" % (command, address, length))
        pair.same(b"%b%x,1000" % (command, HIGH))
        pair.same(b"%b%X,%08X" % (command, HIGH + 0xABC, 0x1F))
        pair.same(b"%b0,1000" % command)
        pair.same(b"%b%016x,1" % (command, work))


def test_every_byte_value_and_long_runs(pair: Pair) -> None:
    data = bytes(range(256)) + bytes(700) + b"#$}*" * 30 + b"\xaa" * 300
    assert pair.client.ask(b"X%x,%x:%b" % (HIGH + 0x400, len(data), data)) == b"OK"
    for start in (0, 1, 3, 250, 900):
        for command in (b"m", b"x"):
            pair.same(b"%b%x,%x" % (command, HIGH + 0x400 + start, len(data) - start))


def test_what_is_not_all_there_is_left_to_the_session(pair: Pair) -> None:
    hole = HIGH + 2 * PAGE
    replies = {
        b"m%x,40" % (hole - 8): 16,
        b"m%x,1" % hole: b"E.cannot access",
        b"x%x,1" % (HIGH + 5 * PAGE): b"E.cannot access",
        b"m800000000000,4": b"E.cannot access",
        b"mffffffffffffffff,4": b"E.cannot access",
        b"m%x,0" % HIGH: 0,
        b"m%x,%x" % (HIGH, _ANSWERED_AT_MOST + 1): 2 * 2 * PAGE,
    }
    for payload, expected in replies.items():
        frame_sent = pair.left(frame(payload))
        if isinstance(expected, bytes):
            assert frame_sent.startswith(b"$" + expected), payload


@pytest.mark.parametrize(
    "data",
    [
        b"$m1000,4#00",
        b"$m1000,4",
        b"+" + frame(b"m1000,4"),
        frame(b"m1000,4") * 2,
        frame(b"m1000,4") + b"\x03",
        frame(b"m"),
        frame(b"m,4"),
        frame(b"m1000"),
        frame(b"m1000,4,4"),
        frame(b"m 1000,4"),
        frame(b"m0x1000,4"),
        frame(b"m10000000000000000,4"),
        frame(b"M1000,1:00"),
        frame(b"g"),
        frame(b"p10"),
        frame(b"m1000,}\x11"),
        b"\x03",
        b"#" * 20,
    ],
)
def test_anything_else_is_left_to_the_session(pair: Pair, data: bytes) -> None:
    pair.left(data)


def test_tables_are_those_of_the_vcpu_as_it_is_now(pair: Pair) -> None:
    client = pair.client
    number = b"%x" % BY_NAME["cr3"].number
    assert client.ask(b"Hgp1.2") == b"OK"
    root = client.ask(b"p" + number)
    pair.same(b"m%x,40" % HIGH)
    # No tables there: zeros.
    empty = (HIGH_PAGES[3]).to_bytes(8, "little").hex().encode()
    assert client.ask(b"M%x,1000:%b" % (HIGH + 3 * PAGE, b"00" * PAGE)) == b"OK"
    assert client.ask(b"P%b=%b" % (number, empty)) == b"OK"
    assert b"E.cannot access" in pair.left(frame(b"m%x,40" % HIGH))
    assert client.ask(b"Hgp1.1") == b"OK"
    pair.same(b"m%x,40" % HIGH)
    assert client.ask(b"Hgp1.2") == b"OK"
    assert client.ask(b"P%b=%b" % (number, root)) == b"OK"
    pair.same(b"m%x,40" % HIGH)


def test_a_session_that_decides_by_more_than_memory_answers_by_itself(
    pair: Pair, new_client: NewClient
) -> None:
    client = pair.client
    assert client.session.memory_view() is not None
    assert client.ask(b"Qqemu.PhyMemMode:1") == b"OK"
    assert client.session.memory_view() is None
    assert client.ask(b"Qqemu.PhyMemMode:0") == b"OK"
    client.feed(b"$m1000")
    assert client.session.memory_view() is None
    client.feed(frame(b"?"))
    assert client.session.memory_view() is not None
    # One that acknowledges packets, and one that has left.
    assert new_client("multiprocess").session.memory_view() is None
    client.feed(frame(b"D;1"))
    assert client.session.memory_view() is None
