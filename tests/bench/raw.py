"""A fast blocking client of the remote protocol, for measuring servers."""

from __future__ import annotations

import socket

from kvmgdb.machine.native import rsp_checksum, rsp_unescape

_SECONDS = 60.0
_HASH, _PLUS = b"#+"


class RawClient:
    """A connection past feature negotiation, without acknowledgements where
    the server can do without (QEMU's stub cannot).

    ``largest`` is the longest packet, in bytes, that the server announces;
    ``has_binary`` says whether it reads memory with ``x``.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), _SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(1 << 22)
        self._view = memoryview(self._buffer)
        self._acks = True
        supported = self.ask(
            b"qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+;"
            b"xmlRegisters=i386;error-message+;binary-upload+"
        )
        items = rsp_unescape(supported, runs=True).decode().split(";")
        features = dict(item.partition("=")[::2] for item in items)
        self.largest = int(features["PacketSize"], 16)
        self.has_binary = "binary-upload+" in features
        if self.ask(b"QStartNoAckMode") == b"OK":
            self._acks = False
        self.ask(b"?")

    def ask(self, payload: bytes) -> bytes:
        """One packet and its reply's payload, with its escapes and run lengths."""
        return bytes(self._exchange(payload))

    def _exchange(self, payload: bytes) -> memoryview:
        """The same without a copy: valid until the next packet."""
        self._socket.sendall(b"$%b#%02x" % (payload, rsp_checksum(payload)))
        buffer, view = self._buffer, self._view
        start = size = 0
        while size < start + 4 or buffer[size - 3] != _HASH:
            count = self._socket.recv_into(view[size:])
            if not count:
                raise ConnectionError("the server closed the connection")
            size += count
            if buffer[0] == _PLUS:
                start = 1
        if self._acks:
            self._socket.sendall(b"+")
        return view[start + 1 : size - 3]

    def check_hex(self, address: int, expected: bytes, piece: int) -> None:
        """Reads memory through ``m``, ``piece`` bytes at a time, and compares it."""
        done = 0
        while done < len(expected):
            reply = self.ask(b"m%x,%x" % (address + done, min(piece, len(expected) - done)))
            if b"*" in reply:
                reply = rsp_unescape(reply, runs=True)
            done = _compare(bytes.fromhex(reply.decode("ascii")), expected, done)

    def check_binary(self, address: int, expected: bytes, piece: int) -> None:
        """Reads memory through ``x``, at most ``piece`` bytes at a time, and compares it."""
        done = 0
        while done < len(expected):
            reply = self._exchange(b"x%x,%x" % (address + done, min(piece, len(expected) - done)))
            assert reply[0] == ord("b"), bytes(reply[:40])
            runs = self._buffer.find(b"*", 0, len(reply)) >= 0
            done = _compare(rsp_unescape(bytes(reply[1:]), runs=runs), expected, done)

    def close(self) -> None:
        """Detaches and closes."""
        self.ask(b"D;1")
        self._socket.close()


def _compare(data: bytes, expected: bytes, done: int) -> int:
    end = done + len(data)
    if not data or data != expected[done:end]:
        raise SystemExit(f"the server reads something else than the monitor at offset {done:#x}")
    return end
