"""Packets out of a stream of bytes: good ones, bad ones, and garbage."""

from __future__ import annotations

import random

import pytest

from kvmgdb.rsp.packet import BadPacket, Interrupt, Item, Nak, Packet, PacketReader
from tests.rsp.wire import frame

LIMIT = 256


def read(*pieces: bytes, limit: int = LIMIT) -> list[Item]:
    reader = PacketReader(limit)
    return [item for piece in pieces for item in reader.feed(piece)]


def shown(items: list[Item]) -> list[str]:
    """The items as text, so that they can be compared."""
    return [
        item.payload.decode("latin-1") if isinstance(item, Packet) else type(item).__name__
        for item in items
    ]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"$g#67", ["g"]),
        (b"$#00", [""]),
        (b"+$g#67", ["g"]),
        (b"+++$g#67+", ["g"]),
        (b"$g#67$?#3f", ["g", "?"]),
        (b"+$g#67+$?#3f\x03", ["g", "?", "Interrupt"]),
        (b"\x03", ["Interrupt"]),
        (b"-", ["Nak"]),
        (b"-$g#67", ["Nak", "g"]),
        (b"\r\n noise $g#67 more", ["g"]),
        (b"#67$g#67", ["g"]),
        # An interrupt byte inside of a packet is data.
        (b"$X0,1:\x03#%02x" % (sum(b"X0,1:\x03") % 256), ["X0,1:\x03"]),
        # "+" and "-" inside of a packet, too.
        (b"$a+-#%02x" % (sum(b"a+-") % 256), ["a+-"]),
        # A packet that was cut off, and the next one.
        (b"$m1000,4$g#67", ["g"]),
        (b"$$$g#67", ["g"]),
        # Upper-case checksums are checksums.
        (b"$m0,4#fD", ["m0,4"]),
        (b"$g#68", ["BadPacket"]),
        (b"$g#zz", ["BadPacket"]),
        (b"$g#6", []),
        (b"$g#+7", ["BadPacket"]),
        (b"$g# 67", ["BadPacket"]),
        (b"$g##67", ["BadPacket"]),
        (b"$g#68$?#3f", ["BadPacket", "?"]),
    ],
)
def test_stream(stream: bytes, expected: list[str]) -> None:
    assert shown(read(stream)) == expected


STREAM = (
    b"+$qSupported:multiprocess+#c6"
    b"\x03-garbage$m10$m1000,4#8e$g#00" + frame(b"X1000,5:#$}\x03*") + b"\x03$k#6b"
)
EXPECTED = [
    "qSupported:multiprocess+",
    "Interrupt",
    "Nak",
    "m1000,4",
    "BadPacket",
    "X1000,5:}\x03}\x04}]\x03*",
    "Interrupt",
    "k",
]


def test_split_at_every_position() -> None:
    for position in range(len(STREAM) + 1):
        assert shown(read(STREAM[:position], STREAM[position:])) == EXPECTED, position


def test_byte_by_byte() -> None:
    assert shown(read(*(STREAM[i : i + 1] for i in range(len(STREAM))))) == EXPECTED


@pytest.mark.parametrize("size", [2, 3, 5, 7, 64])
def test_in_pieces(size: int) -> None:
    pieces = [STREAM[i : i + size] for i in range(0, len(STREAM), size)]
    assert shown(read(*pieces)) == EXPECTED


@pytest.mark.parametrize("piece", [1, 7, LIMIT, 10 * LIMIT])
def test_a_packet_of_the_limit_is_taken_and_a_longer_one_is_not(piece: int) -> None:
    longest, longer = frame(b"a" * LIMIT), frame(b"a" * (LIMIT + 1))
    stream = longest + longer + frame(b"g")
    pieces = [stream[i : i + piece] for i in range(0, len(stream), piece)]
    items = read(*pieces)
    assert shown(items) == ["a" * LIMIT, "BadPacket", "g"]
    bad = items[1]
    assert isinstance(bad, BadPacket)
    assert bad.reason == "a packet of more than 256 bytes"


def test_a_packet_without_an_end_is_not_kept() -> None:
    reader = PacketReader(LIMIT)
    list(reader.feed(b"$"))
    for _ in range(1000):
        assert list(reader.feed(b"a" * 1000)) == []
        assert len(reader._buffer) <= LIMIT + 1001
    # What follows its end is taken again.
    assert shown(list(reader.feed(b"#00" + frame(b"g")))) == ["BadPacket", "g"]


def test_noise_is_not_kept() -> None:
    reader = PacketReader(LIMIT)
    for _ in range(100):
        assert list(reader.feed(b"noise" * 1000)) == []
        assert not reader._buffer


def mutate(random_: random.Random, stream: bytes) -> bytes:
    data = bytearray(stream)
    for _ in range(random_.randrange(1, 6)):
        choice = random_.randrange(4)
        position = random_.randrange(len(data) + 1)
        if choice == 0 and data:
            data[position % len(data)] = random_.choice(b"$#}*+-\x03\x00\xff0a")
        elif choice == 1:
            data[position:position] = random_.choice([b"$", b"#", b"}", b"$g#67", b"\x03", b"#0"])
        elif choice == 2:
            del data[position : position + random_.randrange(8)]
        else:
            data[position:position] = random_.randbytes(random_.randrange(40))
    return bytes(data)


@pytest.mark.parametrize("seed", range(8))
def test_any_stream_in_any_pieces(seed: int) -> None:
    """Whatever comes: no exception, a bounded buffer, no packet whose checksum is
    wrong, and the same packets however the stream was cut."""
    random_ = random.Random(seed)
    for _ in range(250):
        stream = mutate(random_, STREAM * random_.randrange(1, 4))
        whole = read(stream, limit=48)
        reader = PacketReader(48)
        found: list[Item] = []
        position = 0
        while position < len(stream):
            end = position + random_.randrange(1, 30)
            found += reader.feed(stream[position:end])
            assert len(reader._buffer) <= 48 + 40
            position = end
        kinds = (Packet, BadPacket, Interrupt, Nak)
        assert all(isinstance(item, kinds) for item in found)
        for item in found:
            if isinstance(item, Packet):
                assert len(item.payload) <= 48
                assert b"$%b#%02x" % (item.payload, sum(item.payload) % 256) in stream.lower() or (
                    item.payload in stream
                )
        assert shown(found) == shown(whole), (seed, stream)
        # It still takes a packet afterwards: at the latest the second one, where
        # the first is swallowed as the rest of one that had no end.
        after = [*reader.feed(b"#00" + frame(b"vMustReplyEmpty"))]
        assert shown(after)[-1] == "vMustReplyEmpty", (seed, stream)
