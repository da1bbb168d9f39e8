"""A client of somebody else's GDB stub (QEMU's, Firecracker's, crosvm's ...).

Synchronous, one connection. Replies are matched to requests by order; a stop
reply that nobody asked for (QEMU before 8.1 sends one to a client that connects
while the guest runs) is kept apart from them.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence

from kvmgdb.errors import ProtocolError, TargetGoneError, TargetTimeoutError
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.awake import wakefulness
from kvmgdb.machine.native import rsp_checksum, rsp_unescape

CONNECT_TIMEOUT = 5.0
REQUEST_TIMEOUT = 10.0
# A stub that announces no PacketSize may have QEMU's old limit.
DEFAULT_PACKET_SIZE = 1024
MAX_PACKET = 1 << 20
MAX_VCPUS = 4096
# Below the size from which the allocator maps and unmaps memory for each piece.
_RECEIVE_SIZE = 1 << 15
# Seconds for which a reply is waited for awake.
_AWAKE = 0.0002


def frame(payload: bytes) -> bytes:
    """``$payload#cc``; the payload must already be escaped."""
    return b"$%b#%02x" % (payload, rsp_checksum(payload))


class StubClient:
    """A connection to a GDB stub, past feature negotiation.

    ``features`` maps what the stub announced in ``qSupported`` to its value
    ("+" where it has none). Raises TargetGoneError when the stub closes the
    connection and TargetTimeoutError when it does not answer.
    """

    def __init__(self, address: SocketAddress, timeout: float = REQUEST_TIMEOUT) -> None:
        self.address = address
        self.timeout = timeout
        self.was_running = False
        self._buffer = bytearray()
        self._owes_ack = False
        self._acks = True
        self._closed = False
        self._socket = address.connect(CONNECT_TIMEOUT)
        self._socket.setblocking(False)
        try:
            self.features = self._negotiate()
        except BaseException:
            self.close()
            raise

    @property
    def packet_size(self) -> int:
        """The longest packet, in bytes, that the stub takes."""
        try:
            size = int(self.features.get("PacketSize", ""), 16)
        except ValueError:
            return DEFAULT_PACKET_SIZE
        return max(64, min(size, MAX_PACKET))

    def fileno(self) -> int:
        return self._socket.fileno()

    def request(self, payload: bytes, timeout: float | None = None) -> bytes:
        """Sends one packet and returns the payload of its reply."""
        return self.request_all((payload,), timeout)[0]

    def request_all(self, payloads: Sequence[bytes], timeout: float | None = None) -> list[bytes]:
        """Sends packets in one go and returns their replies in order. None of
        them may let the guest run."""
        self._send(b"".join(frame(payload) for payload in payloads))
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        replies = []
        for _ in payloads:
            reply = self._receive(deadline)
            while reply.startswith(b"O") and reply != b"OK":
                reply = self._receive(deadline)
            replies.append(reply)
        return replies

    def remote_command(self, line: str) -> str | None:
        """``qRcmd``: passes a line to the stub's own monitor and returns what it
        prints, or None where the stub has no monitor."""
        self._send(frame(b"qRcmd," + line.encode().hex().encode()))
        deadline = time.monotonic() + self.timeout
        text = bytearray()
        while len(text) < MAX_PACKET:
            reply = self._receive(deadline)
            if reply == b"OK":
                return text.decode(errors="replace").replace("\r\n", "\n")
            if not reply or (len(reply) == 3 and reply.startswith(b"E")):
                return None
            try:
                # QEMU sends its output as O packets, others as the reply itself.
                text += bytes.fromhex(reply.removeprefix(b"O").decode("ascii"))
            except ValueError:
                raise self._not_rsp(reply) from None
            if not reply.startswith(b"O"):
                return text.decode(errors="replace").replace("\r\n", "\n")
        raise ProtocolError(f"{self.address} answers `{line}` without an end")

    def threads(self) -> list[bytes]:
        """The stub's names of its threads. Raises ProtocolError where there is no
        end of them."""
        names: list[bytes] = []
        reply = self.request(b"qfThreadInfo")
        while reply.startswith(b"m") and len(names) <= MAX_VCPUS:
            names += reply[1:].split(b",")
            reply = self.request(b"qsThreadInfo")
        if len(names) > MAX_VCPUS:
            raise ProtocolError(f"the stub at {self.address} lists more than {MAX_VCPUS} vCPUs")
        # A stub without threads has one vCPU, which every name selects.
        return names or [b"0"]

    def drop_breakpoints(self, threads: Sequence[bytes]) -> None:
        """Removes all breakpoints that a debugger before us has left in a QEMU.

        QEMU drops them when it is asked why it stopped, but those of one vCPU only,
        the one that ``Hc`` selected (tcg_remove_all_breakpoints, QEMU 7.2).
        """
        self.request_all([request for name in threads for request in (b"Hc" + name, b"?")])

    def post(self, payload: bytes) -> None:
        """Sends a packet whose reply comes later, or not at all."""
        self._send(frame(payload))

    def interrupt(self) -> None:
        """Asks a running stub to stop; the stop reply comes later."""
        self._send(b"\x03")

    def poll(self) -> bytes | None:
        """A packet that has arrived, without waiting, or None."""
        packet = self._take_packet()
        if packet is None and self._fill(0.0):
            packet = self._take_packet()
        return packet

    def wait(self, timeout: float) -> bytes:
        """The next packet; raises TargetTimeoutError after ``timeout`` seconds."""
        return self._receive(time.monotonic() + timeout)

    def close(self) -> None:
        self._closed = True
        self._socket.close()

    def _negotiate(self) -> dict[str, str]:
        self._send(frame(b"qSupported:multiprocess+;swbreak+;hwbreak+;xmlRegisters=i386"))
        deadline = time.monotonic() + self.timeout
        reply = self._receive(deadline)
        # Nothing in qSupported's reply starts like a stop reply for a thread.
        while reply[:1] in (b"T", b"S") and b"=" not in reply and b"+" not in reply:
            self.was_running = True
            reply = self._receive(deadline)
        features = {}
        for item in reply.decode("ascii", "replace").split(";"):
            name, separator, value = item.partition("=")
            if separator:
                features[name] = value
            elif item[-1:] in ("+", "-", "?"):
                features[item[:-1]] = item[-1]
        if features.get("QStartNoAckMode") == "+" and self.request(b"QStartNoAckMode") == b"OK":
            self._flush_ack()
            self._acks = False
        return features

    def _send(self, data: bytes) -> None:
        if self._owes_ack:
            data = b"+" + data
            self._owes_ack = False
        if self._closed:
            raise self._gone()
        deadline = time.monotonic() + self.timeout
        try:
            while data:
                try:
                    data = data[self._socket.send(data) :]
                except BlockingIOError:
                    if not self._wait_for(select.POLLOUT, deadline - time.monotonic()):
                        raise self._timed_out() from None
        except OSError:
            raise self._gone() from None

    def _flush_ack(self) -> None:
        if self._owes_ack:
            self._send(b"")

    def _receive(self, deadline: float) -> bytes:
        while (packet := self._take_packet()) is None:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self._fill(remaining):
                raise self._timed_out()
        return packet

    def _fill(self, timeout: float) -> bool:
        """Reads what is there; False where nothing came within ``timeout``."""
        if self._closed:
            raise self._gone()
        try:
            piece = self._receive_piece(timeout)
        except OSError:
            raise self._gone() from None
        if piece is None:
            return False
        if not piece:
            raise self._gone()
        self._buffer += piece
        if len(self._buffer) > 4 * MAX_PACKET:
            raise self._not_rsp(bytes(self._buffer[:40]))
        return True

    def _receive_piece(self, timeout: float) -> bytes | None:
        """Waits awake at first: to fall asleep for a reply and to be woken up takes
        longer than a stub takes to make one."""
        now = time.perf_counter()
        awake_until = now + min(timeout, _AWAKE) if wakefulness.pays else now
        while True:
            try:
                return self._socket.recv(_RECEIVE_SIZE)
            except BlockingIOError:
                if now < awake_until:
                    now = wakefulness.look(now)
                    continue
            if timeout <= _AWAKE or not self._wait_for(select.POLLIN, timeout):
                return None

    def _wait_for(self, events: int, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, events)
        return bool(poll.poll(max(timeout, 0.0) * 1e3))

    def _take_packet(self) -> bytes | None:
        """The payload of the next whole packet in the buffer. Acknowledgements,
        notifications and noise before it are dropped."""
        while True:
            start = self._buffer.find(b"$")
            if start < 0:
                self._buffer.clear()
                return None
            end = self._buffer.find(b"#", start)
            if end < 0 or end + 3 > len(self._buffer):
                del self._buffer[:start]
                return None
            payload = bytes(self._buffer[start + 1 : end])
            trailer = bytes(self._buffer[end + 1 : end + 3])
            del self._buffer[: end + 3]
            try:
                checksum = int(trailer, 16)
            except ValueError:
                raise self._not_rsp(trailer) from None
            if self._acks and checksum != rsp_checksum(payload):
                self._send(b"-")
                continue
            self._owes_ack = self._acks
            if b"}" in payload or b"*" in payload:
                return rsp_unescape(payload, runs=True)
            return payload

    def _gone(self) -> TargetGoneError:
        self.close()
        return TargetGoneError(f"the GDB stub at {self.address} has closed the connection")

    def _timed_out(self) -> TargetTimeoutError:
        return TargetTimeoutError(f"the GDB stub at {self.address} does not answer")

    def _not_rsp(self, data: bytes) -> ProtocolError:
        return ProtocolError(f"{self.address} does not speak GDB's remote protocol: {data[:40]!r}")
