"""Frames with runs: they say what the memory holds, in few bytes."""

from __future__ import annotations

import random

import pytest

from kvmgdb.machine.native import rsp_frame_binary, rsp_frame_hex
from tests.rsp.wire import checksum, decode

PAGE = 0x1000


def taken_apart(frame: bytes) -> bytes:
    assert frame[:1] == b"$"
    assert frame[-3:] == b"#" + checksum(frame[1:-3])
    return decode(frame[1:-3])


def framed(prefix: bytes, data: bytes, binary: bool) -> bytes:
    return (rsp_frame_binary if binary else rsp_frame_hex)(prefix, data, runs=True)


def samples() -> list[bytes]:
    random_ = random.Random(7)
    dense = random_.randbytes(PAGE)
    found = [
        b"",
        bytes(1),
        bytes(PAGE),
        bytes(PAGE - 1),
        b"\xff" * (3 * PAGE + 1),
        dense + bytes(PAGE) + dense,
        bytes(PAGE) + dense + bytes(2 * PAGE + 7),
        b"}#$*" * 4 + bytes(5 * PAGE) + b"*}" + b"}" * 300,
        b"".join(value.to_bytes(8, "little") for value in range(1000)),
    ]
    for _ in range(100):
        pieces = [random_.choice([bytes(PAGE), dense, b"*#$}", bytes(100)]) for _ in range(8)]
        found.append(b"".join(pieces))
    return found


@pytest.mark.parametrize("binary", [False, True])
def test_nothing_is_lost(binary: bool) -> None:
    for data in samples():
        expected = b"b" + (data if binary else data.hex().encode())
        frame = framed(b"b", data, binary)
        assert taken_apart(frame) == expected
        encode = rsp_frame_binary if binary else rsp_frame_hex
        assert len(frame) <= len(encode(b"b", data, runs=False))


@pytest.mark.parametrize("binary", [False, True])
def test_runs_are_short(binary: bool) -> None:
    assert len(framed(b"", bytes(32 * PAGE), binary)) < 32 * 256
    words = (1).to_bytes(8, "little") * 512
    assert len(framed(b"", words, binary)) < 512 * 5 + 100
