"""Protocol text against a plain reading of the manual, on random input."""

from __future__ import annotations

import random
import zlib

import pytest

from kvmgdb.errors import InvalidRangeError
from kvmgdb.machine.native import (
    rsp_checksum,
    rsp_crc,
    rsp_frame,
    rsp_frame_binary,
    rsp_frame_hex,
    rsp_unescape,
)

SPECIAL = b"#$}*"
ROUNDS = 3000


def _frame(payload: bytes) -> bytes:
    return b"$%b#%02x" % (payload, sum(payload) % 256)


def _escape(data: bytes) -> bytes:
    out = bytearray()
    for byte in data:
        out += bytes([ord("}"), byte ^ 0x20]) if byte in SPECIAL else bytes([byte])
    return bytes(out)


def _expand(payload: bytes) -> bytes:
    """Run lengths only."""
    out = bytearray()
    position = 0
    while position < len(payload):
        if payload[position] == ord("*"):
            out += out[-1:] * (payload[position + 1] - 29)
            position += 1
        else:
            out.append(payload[position])
        position += 1
    return bytes(out)


def _unescape(payload: bytes) -> bytes:
    """Escapes only."""
    out = bytearray()
    position = 0
    while position < len(payload):
        if payload[position] == ord("}"):
            position += 1
            out.append(payload[position] ^ 0x20)
        else:
            out.append(payload[position])
        position += 1
    return bytes(out)


def _random_data(source: random.Random) -> bytes:
    length = source.randrange(200)
    if source.random() < 0.3:
        return bytes(source.choice(b"#$}* +-0a") for _ in range(length))
    return source.randbytes(length)


def test_binary_and_hex_frames() -> None:
    source = random.Random(1)
    for _ in range(ROUNDS):
        data = _random_data(source)
        prefix = source.choice([b"", b"b", b"m", b"F1c;"])
        assert rsp_frame_binary(prefix, data, runs=False) == _frame(prefix + _escape(data))
        assert rsp_frame_hex(prefix, data, runs=False) == _frame(prefix + data.hex().encode())
        assert rsp_frame(data, binary=True, runs=False) == _frame(_escape(data))


def test_text_frames_with_and_without_runs() -> None:
    source = random.Random(2)
    for _ in range(ROUNDS):
        text = b"".join(
            bytes([source.choice(b"0123456789abcdefx;:")])
            * source.choice([1, 1, 2, 3, 4, 7, 8, 150])
            for _ in range(source.randrange(20))
        )
        assert rsp_frame(text, binary=False, runs=False) == _frame(text)
        frame = rsp_frame(text, binary=False, runs=True)
        payload = frame[1:-3]
        assert frame == _frame(payload)
        assert _expand(payload) == text
        assert len(payload) <= len(text)
        for place, byte in enumerate(payload):
            if byte == ord("*"):
                assert 32 <= payload[place + 1] <= 126
                assert payload[place + 1] not in b"#$+-"
        assert rsp_unescape(payload, runs=True) == text


@pytest.mark.parametrize("special", [b"#", b"$", b"}", b"*"])
@pytest.mark.parametrize("runs", [False, True])
def test_text_that_needs_escapes_is_refused(special: bytes, runs: bool) -> None:
    with pytest.raises(ValueError, match="needs escapes"):
        rsp_frame(b"a text with " + special + b" in it", binary=False, runs=runs)


def test_unescape_is_the_expansion_and_then_the_escapes() -> None:
    source = random.Random(3)
    outcomes = {True: 0, False: 0}
    for _ in range(ROUNDS):
        payload = bytes(
            source.choice(b"}* !~#abc\x03\x1f\x7f") for _ in range(source.randrange(12))
        )
        try:
            counts = [payload[i + 1] for i in _run_places(payload)]
            good = all(32 <= count <= 126 for count in counts) and payload[:1] != b"*"
            expected = _unescape(_expand(payload)) if good else None
        except IndexError:
            expected = None
        outcomes[expected is not None] += 1
        if expected is None:
            with pytest.raises(InvalidRangeError):
                rsp_unescape(payload, runs=True)
        else:
            assert rsp_unescape(payload, runs=True) == expected
    assert min(outcomes.values()) > ROUNDS // 20


def _run_places(payload: bytes) -> list[int]:
    places = []
    position = 0
    while position < len(payload):
        if payload[position] == ord("*"):
            places.append(position)
            position += 1
        position += 1
    return places


def test_binary_data_comes_back() -> None:
    source = random.Random(4)
    for _ in range(ROUNDS):
        data = _random_data(source)
        payload = rsp_frame_binary(b"", data, runs=False)[1:-3]
        assert rsp_unescape(payload, runs=source.random() < 0.5) == data


def test_where_a_payload_is_malformed() -> None:
    with pytest.raises(InvalidRangeError, match="malformed at byte 20"):
        rsp_unescape(b"12345678901234567890*", runs=True)


def test_without_runs_a_star_is_a_star() -> None:
    assert rsp_unescape(b"a*!b", runs=False) == b"a*!b"
    assert rsp_unescape(b"", runs=True) == b""


def test_the_longest_runs() -> None:
    assert rsp_unescape(b"a" + b"*~" * 1000, runs=True) == b"a" * 97001


def test_checksum_and_crc() -> None:
    source = random.Random(5)
    for _ in range(300):
        data = source.randbytes(source.randrange(500))
        assert rsp_checksum(data) == sum(data) % 256
        # zlib's CRC is the same one with all bits in the opposite order.
        mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
        value = zlib.crc32(mirrored) ^ 0xFFFFFFFF
        assert rsp_crc(0xFFFFFFFF, data) == int(f"{value:032b}"[::-1], 2)
        cut = source.randrange(len(data) + 1)
        assert rsp_crc(rsp_crc(0xFFFFFFFF, data[:cut]), data[cut:]) == rsp_crc(0xFFFFFFFF, data)
