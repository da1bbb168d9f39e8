"""Which function handles which packet.

Handlers register with :func:`packet` under the packet's name; the longest name
that a payload starts with wins, and what follows it are the arguments. A
handler returns a :class:`Reply`, an awaitable of one, or None where the reply
comes later (a stop reply). KvmgdbErrors that it raises become ``E`` replies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvmgdb.errors import KvmgdbError

if TYPE_CHECKING:
    from kvmgdb.rsp.session import Session

# What we announce: bytes of the longest packet either side may send. A memory
# read carries half as much in hex.
PACKET_SIZE = 0x80000


@dataclass(slots=True)
class Reply:
    """A reply: a payload without bytes that need escapes, or a whole frame."""

    payload: bytes = b""
    framed: bytes = b""


_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")

OK = Reply(b"OK")
UNSUPPORTED = Reply(b"")

Handler = Callable[["Session", bytes], "Reply | Awaitable[Reply] | None"]


class MalformedPacketError(KvmgdbError):
    """A packet whose arguments are not what the protocol says."""

    def __init__(self, name: str, arguments: bytes) -> None:
        super().__init__(f"malformed packet {name}{arguments[:40].decode('ascii', 'replace')}")


_exact: dict[bytes, Handler] = {}
_prefixes: dict[bytes, Handler] = {}
_lengths: list[int] = []


def packet(name: str, arguments: bool = True) -> Callable[[Handler], Handler]:
    """Registers a handler for packets whose payload starts with ``name``, or,
    without ``arguments``, is ``name``."""

    def register(handler: Handler) -> Handler:
        if not arguments:
            _exact[name.encode()] = handler
            return handler
        _prefixes[name.encode()] = handler
        _lengths[:] = sorted({len(key) for key in _prefixes}, reverse=True)
        return handler

    return register


def find_handler(payload: bytes) -> tuple[Handler | None, bytes]:
    """The handler of a packet and its arguments, or None."""
    handler = _exact.get(payload)
    if handler is not None:
        return handler, b""
    for length in _lengths:
        handler = _prefixes.get(payload[:length])
        if handler is not None:
            return handler, payload[length:]
    return None, b""


def parse_hex(text: bytes, name: str, limit: int = 1 << 64) -> int:
    """A number in hex without sign or prefix, below ``limit``."""
    if not 0 < len(text) <= 16 or not _HEX_DIGITS.issuperset(text):
        raise MalformedPacketError(name, text)
    value = int(text, 16)
    if value >= limit:
        raise MalformedPacketError(name, text)
    return value


def parse_range(text: bytes, name: str) -> tuple[int, int]:
    """``addr,length``."""
    address, comma, length = text.partition(b",")
    if not comma:
        raise MalformedPacketError(name, text)
    return parse_hex(address, name), parse_hex(length, name)


def parse_bytes(text: bytes, name: str) -> bytes:
    """Bytes as pairs of hex digits."""
    try:
        return bytes.fromhex(text.decode("ascii"))
    except (ValueError, UnicodeDecodeError):
        raise MalformedPacketError(name, text) from None
