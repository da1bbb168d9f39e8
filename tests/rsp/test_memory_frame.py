"""Frames with pages of zeros: they say what the memory holds, in few bytes."""

from __future__ import annotations

import random

import pytest

from kvmgdb.rsp.memory_frame import frame_memory
from tests.rsp.wire import checksum, decode

PAGE = 0x1000


def taken_apart(frame: bytes) -> bytes:
    assert frame[:1] == b"$"
    assert frame[-3:] == b"#" + checksum(frame[1:-3])
    return decode(frame[1:-3])


def samples() -> list[tuple[int, bytes]]:
    random_ = random.Random(7)
    dense = random_.randbytes(PAGE)
    found = [
        (0, b""),
        (0, bytes(1)),
        (0, bytes(PAGE)),
        (0, bytes(PAGE - 1)),
        (1, bytes(PAGE)),
        (1, bytes(2 * PAGE)),
        (0xFFF, bytes(3 * PAGE)),
        (0, dense + bytes(PAGE) + dense),
        (0, bytes(PAGE) + dense + bytes(2 * PAGE + 7)),
        (0x10, b"}#$*" * 4 + bytes(5 * PAGE) + b"*}"),
        (2**64 - 2 * PAGE, bytes(2 * PAGE)),
    ]
    for _ in range(100):
        pieces = [random_.choice([bytes(PAGE), dense, b"*#$}", bytes(100)]) for _ in range(8)]
        found.append((random_.randrange(2 * PAGE), b"".join(pieces)))
    return found


@pytest.mark.parametrize("binary", [False, True])
def test_nothing_is_lost(binary: bool) -> None:
    for address, data in samples():
        expected = b"b" + (data if binary else data.hex().encode())
        assert taken_apart(frame_memory(b"b", address, data, binary)) == expected


@pytest.mark.parametrize("binary", [False, True])
def test_zeros_are_short(binary: bool) -> None:
    assert len(frame_memory(b"", 0, bytes(32 * PAGE), binary)) < 32 * 256
    # Wherever they begin.
    assert len(frame_memory(b"", 0x123, bytes(32 * PAGE), binary)) < 32 * 256 + 2 * PAGE
