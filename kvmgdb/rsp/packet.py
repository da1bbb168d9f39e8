"""Frames of the remote protocol: taking them out of a stream of bytes.

::

    $ payload # c c      a packet; cc is the sum of the payload's bytes, in hex
    +  -                 the other side's last packet arrived, or did not
    0x03                 interrupt, outside of packets

Inside a payload ``#``, ``$`` and ``}`` are escaped (``}`` and the byte xor
0x20). GDB does not length-encode runs in what it sends, so ``*`` is data here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvmgdb.machine.native import rsp_checksum

_DOLLAR, _HASH, _INTERRUPT, _PLUS, _MINUS = b"$#\x03+-"
_HEX = frozenset(b"0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class Packet:
    """A whole packet whose checksum is right; ``payload`` is still escaped."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class BadPacket:
    """A packet that must not be executed; ``reason`` is for the user."""

    reason: str


class Interrupt:
    """The interrupt byte."""


class Nak:
    """The client asks for our last packet again."""


Item = Packet | BadPacket | Interrupt | Nak

INTERRUPT = Interrupt()
NAK = Nak()


class PacketReader:
    """Cuts a stream into packets. ``limit``: bytes of the longest payload taken.

    Bytes between packets that mean nothing are dropped. A ``$`` inside a packet
    starts a new one: what was before it is the rest of a packet that was cut off.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._scanned = 0
        self._discarding = False

    @property
    def is_empty(self) -> bool:
        """Whether the next byte begins something new."""
        return not self._buffer and not self._discarding

    def feed(self, data: bytes) -> Iterator[Item]:
        """Adds bytes; yields what is complete, in order."""
        buffer = self._buffer
        # By far the most frequent: one whole packet and nothing else, possibly
        # after the acknowledgement of our last one.
        if self.is_empty:
            start = 1 if data[:1] == b"+" else 0
            if data.rfind(b"$") == start and data.find(b"#") == len(data) - 3 > start:
                yield from self._packet(data[start + 1 : -3], data[-2:])
                return
        buffer += data
        while buffer:
            item = self._next()
            if item is None:
                return
            yield from item

    def _next(self) -> Iterator[Item] | None:
        """Takes one thing from the start of the buffer; None where more bytes
        are needed first."""
        buffer = self._buffer
        if self._discarding:
            return self._discard()
        first = buffer[0]
        if first != _DOLLAR:
            del buffer[0]
            if first == _INTERRUPT:
                return iter((INTERRUPT,))
            if first == _MINUS:
                return iter((NAK,))
            if first != _PLUS:
                self._skip_noise()
            return iter(())
        end = buffer.find(b"#", max(1, self._scanned))
        if end < 0:
            restart = buffer.rfind(b"$")
            if restart > 0:
                del buffer[:restart]
            self._scanned = len(buffer)
            if len(buffer) > self._limit + 1:
                self._discarding = True
                self._scanned = 0
                buffer.clear()
                return iter(())
            return None
        if end + 3 > len(buffer):
            self._scanned = end
            return None
        start = buffer.rfind(b"$", 0, end) + 1
        payload, checksum = bytes(buffer[start:end]), bytes(buffer[end + 1 : end + 3])
        del buffer[: end + 3]
        self._scanned = 0
        return self._packet(payload, checksum)

    def _packet(self, payload: bytes, checksum: bytes) -> Iterator[Item]:
        if len(payload) > self._limit:
            yield BadPacket(f"a packet of more than {self._limit} bytes")
        elif not _HEX.issuperset(checksum) or int(checksum, 16) != rsp_checksum(payload):
            yield BadPacket("a packet with a wrong checksum")
        else:
            yield Packet(payload)

    def _discard(self) -> Iterator[Item] | None:
        """Drops the rest of a packet that is too long; one that was cut off, too."""
        buffer = self._buffer
        end = buffer.find(b"#")
        restart = buffer.find(b"$", 0, end if end >= 0 else len(buffer))
        if restart >= 0:
            del buffer[:restart]
            self._discarding = False
            return iter(())
        if end < 0:
            buffer.clear()
            return None
        if end + 3 > len(buffer):
            del buffer[:end]
            return None
        del buffer[: end + 3]
        self._discarding = False
        return iter((BadPacket(f"a packet of more than {self._limit} bytes"),))

    def _skip_noise(self) -> None:
        """Drops bytes up to the next one that means something."""
        buffer = self._buffer
        for index, byte in enumerate(buffer):
            if byte in (_DOLLAR, _INTERRUPT, _PLUS, _MINUS):
                del buffer[:index]
                return
        buffer.clear()
