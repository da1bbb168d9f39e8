"""A client of the remote protocol that sends whatever a test wants, right or wrong."""

from __future__ import annotations

import socket
import struct
import time

SECONDS = 60.0


def frame(payload: bytes) -> bytes:
    """``$payload#cc``; the payload must already be escaped."""
    return b"$%b#%02x" % (payload, sum(payload) % 256)


def expand(payload: bytes) -> bytes:
    """Undoes escapes and run-length encoding (GDB manual, "Overview")."""
    result = bytearray()
    index = 0
    while index < len(payload):
        byte = payload[index]
        if byte == ord("}"):
            index += 1
            result.append(payload[index] ^ 0x20)
        elif byte == ord("*"):
            index += 1
            result += result[-1:] * (payload[index] - 29)
        else:
            result.append(byte)
        index += 1
    return bytes(result)


class RawClient:
    """A connection to ``HOST:PORT``, ``:PORT`` or the path of a Unix socket."""

    def __init__(self, address: str) -> None:
        if address.startswith("/"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        else:
            host, _, port = address.rpartition(":")
            self.socket = socket.create_connection((host or "127.0.0.1", int(port)), SECONDS)
        self._buffer = b""
        self.console = b""

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.socket.settimeout(SECONDS)
        self.socket.sendall(data)

    def read(self, count: int, seconds: float = SECONDS) -> bytes:
        """Exactly ``count`` bytes."""
        deadline = time.monotonic() + seconds
        while len(self._buffer) < count:
            self._fill(deadline)
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def receive(self, seconds: float = SECONDS) -> bytes:
        """The payload of the next packet, acknowledged; its checksum must be right.
        Console output is kept in ``console``."""
        deadline = time.monotonic() + seconds
        while True:
            start = self._buffer.find(b"$")
            end = self._buffer.find(b"#", start)
            if start < 0 or end < 0 or len(self._buffer) < end + 3:
                self._fill(deadline)
                continue
            assert not self._buffer[:start].strip(b"+"), self._buffer[:start]
            payload = self._buffer[start + 1 : end]
            checksum = self._buffer[end + 1 : end + 3]
            self._buffer = self._buffer[end + 3 :]
            assert int(checksum, 16) == sum(payload) % 256
            self.send(b"+")
            payload = expand(payload)
            if payload[:1] == b"O" and payload != b"OK":
                self.console += bytes.fromhex(payload[1:].decode())
                continue
            return payload

    def request(self, payload: bytes, seconds: float = SECONDS) -> bytes:
        """Sends a packet and returns the reply."""
        self.send(frame(payload))
        return self.receive(seconds)

    def monitor(self, line: str) -> str:
        """``monitor LINE``: what it prints."""
        self.console = b""
        assert self.request(b"qRcmd," + line.encode().hex().encode()) == b"OK"
        return self.console.decode()

    def is_silent(self, seconds: float) -> bool:
        """Whether no packet comes for so long (acknowledgements and console text may)."""
        try:
            payload = self.receive(seconds)
        except AssertionError:
            return True
        raise AssertionError(f"the server sent {payload[:200]!r}")

    def wait_closed(self, seconds: float = SECONDS) -> bytes:
        """Reads until the server closes the connection; what was read."""
        deadline = time.monotonic() + seconds
        try:
            while True:
                self._fill(deadline)
        except ConnectionError:
            return self._buffer

    def reset(self) -> None:
        """Closes so that the other side gets a reset instead of an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fill(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise AssertionError(
                f"the server did not answer in time; it sent {self._buffer[:200]!r}"
            )
        self.socket.settimeout(left)
        try:
            data = self.socket.recv(1 << 17)
        except TimeoutError:
            return
        if not data:
            raise ConnectionError("the server closed the connection")
        self._buffer += data
