"""Arguments of packets: numbers, ranges, bytes, thread ids; and which handler gets what."""

from __future__ import annotations

import contextlib
import random

import pytest

from kvmgdb.errors import KvmgdbError
from kvmgdb.rsp.dispatch import (
    MalformedPacketError,
    find_handler,
    parse_bytes,
    parse_hex,
    parse_range,
)
from kvmgdb.rsp.threads import ALL, NoSuchThreadError, parse_thread, parse_vcpu
from tests.rsp import wire  # noqa: F401  (registers the packet handlers)


def test_numbers() -> None:
    assert parse_hex(b"0", "m") == 0
    assert parse_hex(b"ffffffffffffffff", "m") == 2**64 - 1
    assert parse_hex(b"DeadBeef", "m") == 0xDEADBEEF


@pytest.mark.parametrize(
    "text",
    [b"", b"g", b"0x10", b"-1", b"+1", b" 1", b"1 ", b"1_0", b"10000000000000000", b"\xb2", b"1\n"],
)
def test_what_is_not_a_number(text: bytes) -> None:
    with pytest.raises(MalformedPacketError):
        parse_hex(text, "m")


def test_a_number_over_its_limit() -> None:
    assert parse_hex(b"ff", "C", 0x100) == 0xFF
    with pytest.raises(MalformedPacketError):
        parse_hex(b"100", "C", 0x100)


@pytest.mark.parametrize("text", [b"", b"1", b",", b"1,", b",1", b"1,2,3", b"1;2", b"1,-2"])
def test_what_is_not_a_range(text: bytes) -> None:
    assert parse_range(b"1000,20", "m") == (0x1000, 0x20)
    with pytest.raises(MalformedPacketError):
        parse_range(text, "m")


@pytest.mark.parametrize("text", [b"0", b"0g", b"\xff\xff", b"000", b"0x00"])
def test_what_is_not_bytes(text: bytes) -> None:
    assert parse_bytes(b"00fF", "M") == b"\0\xff"
    with pytest.raises(MalformedPacketError):
        parse_bytes(text, "M")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (b"1", 1),
        (b"a", 10),
        (b"p1.2", 2),
        (b"0", 0),
        (b"p0.0", 0),
        (b"p1.0", 0),
        (b"-1", ALL),
        (b"p1.-1", ALL),
        (b"p-1.-1", ALL),
        (b"p-1", ALL),
        (b"p1", ALL),
        (b"p0.2", 2),
    ],
)
def test_threads(text: bytes, number: int) -> None:
    assert parse_thread(text, 10, "H") == number


@pytest.mark.parametrize("text", [b"3", b"p1.3", b"p2.1", b"p2", b"ffffffff"])
def test_threads_that_are_not_there(text: bytes) -> None:
    with pytest.raises(NoSuchThreadError):
        parse_thread(text, 2, "H")


@pytest.mark.parametrize(
    "text", [b"", b"p", b"p.", b"p1.", b"p.1", b"x", b"-2", b"--1", b"p1.1.1", b"1" * 9, b"\xff"]
)
def test_what_is_not_a_thread(text: bytes) -> None:
    with pytest.raises(MalformedPacketError):
        parse_thread(text, 2, "H")


@pytest.mark.parametrize("text", [b"0", b"-1", b"p1", b"p1.-1", b"p0.0"])
def test_one_vcpu_is_not_all_or_any(text: bytes) -> None:
    assert parse_vcpu(b"p1.2", 2, "T") == 1
    with pytest.raises(NoSuchThreadError):
        parse_vcpu(text, 2, "T")


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (b"vCont?", "actions"),
        (b"vCont;c", "resume"),
        (b"c", "continue_all"),
        (b"c1000", "continue_all"),
        (b"qC", "current_thread"),
        (b"qCRC:0,1", "crc"),
        (b"qqemu.sstep", "step_flags"),
        (b"qqemu.sstepbits", "step_bits"),
        (b"Qqemu.sstep=1", "set_step_flags"),
        (b"X0,0:", "write_binary"),
        (b"x0,1", "read_binary"),
        (b"D;1", "detach"),
        (b"k", "kill_old"),
        (b"vRun;", "run_program"),
    ],
)
def test_the_longest_name_wins(payload: bytes, name: str) -> None:
    handler, _ = find_handler(payload)
    assert handler is not None
    assert handler.__name__ == name


@pytest.mark.parametrize(
    "payload", [b"", b"vMustReplyEmptyX", b"qCX", b"kill", b"g1", b"?x", b"QNonStop:1"]
)
def test_packets_that_nobody_handles(payload: bytes) -> None:
    assert find_handler(payload) == (None, b"")


def test_no_argument_gets_further_than_a_kvmgdb_error() -> None:
    random_ = random.Random(1)
    alphabet = b"0123456789abcdefp.,;:-+=\x00\xffxg"
    for _ in range(3000):
        text = bytes(random_.choice(alphabet) for _ in range(random_.randrange(12)))
        for parse in (parse_hex, parse_range, parse_bytes):
            with contextlib.suppress(KvmgdbError):
                parse(text, "m")
        with contextlib.suppress(KvmgdbError):
            assert -1 <= parse_thread(text, 4, "H") <= 4
