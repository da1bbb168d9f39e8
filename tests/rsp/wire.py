"""A debugger without a socket: a real Session on an injected connection.

The decoder of frames here shares no code with the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from kvmgdb.machine.interface import Machine
from kvmgdb.rsp.debuggee import Debuggee
from kvmgdb.rsp.server import Server  # noqa: F401  (registers the packet handlers)
from kvmgdb.rsp.session import Session

SECONDS = 60.0


def checksum(payload: bytes) -> bytes:
    return b"%02x" % (sum(payload) % 256)


def frame(payload: bytes) -> bytes:
    """``payload`` as GDB sends it: ``$``, ``#`` and ``}`` are escaped."""
    escaped = b"".join(
        b"}" + bytes((byte ^ 0x20,)) if byte in b"$#}" else bytes((byte,)) for byte in payload
    )
    return b"$" + escaped + b"#" + checksum(escaped)


def decode(escaped: bytes) -> bytes:
    """The payload of a reply, without run lengths and escapes (GDB manual, E.1)."""
    expanded = bytearray()
    position = 0
    while position < len(escaped):
        if escaped[position : position + 1] == b"*":
            expanded += expanded[-1:] * (escaped[position + 1] - 29)
            position += 2
        else:
            expanded.append(escaped[position])
            position += 1
    payload = bytearray()
    position = 0
    while position < len(expanded):
        if expanded[position] == ord("}"):
            position += 1
            payload.append(expanded[position] ^ 0x20)
        else:
            payload.append(expanded[position])
        position += 1
    return bytes(payload)


class Wire:
    """The connection that a session writes to; ``sent`` is all it wrote."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.closed = False
        self._taken = 0

    def write(self, data: bytes) -> None:
        assert not self.closed, f"written after close: {data!r}"
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def take_raw(self) -> bytes:
        """What was written since the last call."""
        data = bytes(self.sent[self._taken :])
        self._taken = len(self.sent)
        return data

    def take_frame(self) -> bytes | None:
        """The next whole packet, undecoded; acknowledgements before it are dropped."""
        start = self._taken
        while start < len(self.sent) and self.sent[start] in b"+-":
            start += 1
        end = self.sent.find(b"#", start)
        if start == len(self.sent) or end < 0:
            return None
        self._taken = end + 3
        return bytes(self.sent[start : end + 3])


class Rig:
    """A debuggee on an event loop of its own, and its debuggers."""

    def __init__(self, open_machine: Callable[[], Machine]) -> None:
        self.loop = asyncio.new_event_loop()
        self.log: list[str] = []
        self.machine: Machine | None = None
        self.debuggee = Debuggee(lambda: self._open(open_machine), self.log.append)

    def _open(self, open_machine: Callable[[], Machine]) -> Machine:
        self.machine = open_machine()
        return self.machine

    def client(self, *features: str) -> Client:
        """A debugger that has announced ``features`` (without ``+``)."""
        client = Client(self)
        announced = ";".join(f"{feature}+" for feature in features)
        reply = client.ask(f"qSupported:{announced}".encode())
        assert reply.startswith(b"PacketSize="), reply
        return client

    def until(self, condition: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Runs the loop until ``condition`` holds."""

        async def wait() -> None:
            deadline = time.monotonic() + seconds
            while not condition():
                assert time.monotonic() < deadline, f"nothing came; the log says {self.log}"
                await asyncio.sleep(0.001)

        self.loop.run_until_complete(wait())

    def idle(self, seconds: float = 0.0) -> None:
        """Gives the loop's tasks a turn, for ``seconds``."""
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def close(self) -> None:
        async def end() -> None:
            self.debuggee.close()

        self.loop.run_until_complete(end())
        self.loop.close()


class Client:
    """One debugger."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.wire = Wire()
        self.session = Session(rig.debuggee, self.wire, "test")

    def feed(self, data: bytes) -> None:
        """Bytes as they are."""

        async def feed() -> None:
            self.session.feed(data)

        self.rig.loop.run_until_complete(feed())

    def send(self, payload: bytes) -> None:
        self.feed(frame(payload))

    def reply(self, seconds: float = SECONDS) -> bytes:
        """The next packet's payload. Its checksum is right, or the test fails."""
        taken: list[bytes] = []

        def arrived() -> bool:
            found = self.wire.take_frame()
            if found is not None:
                taken.append(found)
            return bool(taken)

        self.rig.until(arrived, seconds)
        found = taken[0]
        assert found[:1] == b"$", found[:60]
        assert found[-3:-2] == b"#", found[-60:]
        assert found[-2:] == checksum(found[1:-3]), found[:60]
        return decode(found[1:-3])

    def ask(self, payload: bytes, seconds: float = SECONDS) -> bytes:
        """One packet and its reply."""
        self.send(payload)
        return self.reply(seconds)

    def monitor(self, line: str) -> str:
        """``monitor LINE``, and what it prints."""
        self.send(b"qRcmd," + line.encode().hex().encode())
        text = b""
        while (reply := self.reply()) != b"OK":
            assert reply[:1] == b"O", reply
            text += bytes.fromhex(reply[1:].decode())
        return text.decode()

    def close(self) -> None:
        """The connection is lost."""

        async def close() -> None:
            self.session.close()

        self.rig.loop.run_until_complete(close())

    def quiet(self, seconds: float = 0.1) -> bool:
        """Whether no packet arrives for so long."""
        self.rig.idle(seconds)
        return self.wire.take_frame() is None
