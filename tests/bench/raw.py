"""A fast blocking client of the remote protocol, for measuring servers."""

from __future__ import annotations

import socket

from kvmgdb.machine.native import rsp_checksum, rsp_unescape

_SECONDS = 60.0


class RawClient:
    """A connection past feature negotiation, without acknowledgements where
    the server can do without (QEMU's stub cannot).

    ``largest`` is the longest packet, in bytes, that the server announces;
    ``has_binary`` says whether it reads memory with ``x``.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), _SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(1 << 20)
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
        self._socket.sendall(b"$%b#%02x" % (payload, rsp_checksum(payload)))
        buffer = self._buffer
        view = memoryview(buffer)
        size = 0
        while size < 4 or buffer[size - 3] != ord("#"):
            count = self._socket.recv_into(view[size:])
            if not count:
                raise ConnectionError("the server closed the connection")
            size += count
            # The acknowledgement of our packet, and a stop reply that QEMU sends
            # to whoever connects while its guest runs.
            if self._acks and buffer[:1] == b"+":
                buffer[: size - 1] = buffer[1:size]
                size -= 1
        if self._acks:
            self._socket.sendall(b"+")
        return bytes(view[1 : size - 3])

    def read_hex(self, address: int, length: int, piece: int) -> bytes:
        """Memory through ``m``, ``piece`` bytes at a time."""
        data = bytearray()
        while len(data) < length:
            reply = self.ask(b"m%x,%x" % (address + len(data), min(piece, length - len(data))))
            if b"*" in reply:
                reply = rsp_unescape(reply, runs=True)
            data += bytes.fromhex(reply.decode("ascii"))
        return bytes(data)

    def read_binary(self, address: int, length: int, piece: int) -> bytes:
        """Memory through ``x``, ``piece`` bytes at a time at most."""
        data = bytearray()
        while len(data) < length:
            reply = self.ask(b"x%x,%x" % (address + len(data), min(piece, length - len(data))))
            assert reply[:1] == b"b", reply[:40]
            data += rsp_unescape(reply, runs=True)[1:]
        return bytes(data)

    def close(self) -> None:
        """Detaches and closes."""
        self.ask(b"D;1")
        self._socket.close()
