"""QEMU's machine protocol (QMP): one client connection, synchronous.

QMP is lines of JSON: a greeting, commands with one answer each, and events in
between (docs/interop/qmp-spec in the QEMU tree). A QMP socket serves one
client at a time; a second one connects but gets no greeting.
"""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from kvmgdb.errors import (
    MachineError,
    ProtocolError,
    TargetBusyError,
    TargetGoneError,
    TargetTimeoutError,
)
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.holders import client_of
from kvmgdb.machine.sockets import peer_process

GREETING_TIMEOUT = 2.0
COMMAND_TIMEOUT = 10.0
# The longest answer that QEMU gives (`info mtree` of a large machine) is well
# below a megabyte; a line without an end must not eat the host's memory.
MAX_LINE = 16 << 20


@dataclass(frozen=True)
class QmpEvent:
    """An event; ``data`` is its payload as QEMU sent it."""

    name: str
    data: dict[str, Any]


class QmpError(MachineError):
    """QEMU refused a command; ``error_class`` is QMP's ("GenericError", ...)."""

    def __init__(self, command: str, error_class: str, description: str) -> None:
        self.command = command
        self.error_class = error_class
        super().__init__(f"QEMU refused {command}: {description}")


class Qmp:
    """A connection to a QMP socket, past its greeting.

    Raises TargetGoneError when QEMU closes it, TargetTimeoutError when it does
    not answer within the timeout (seconds).
    """

    def __init__(self, address: SocketAddress, timeout: float = COMMAND_TIMEOUT) -> None:
        self.address = address
        self.timeout = timeout
        self.events: deque[QmpEvent] = deque(maxlen=1024)
        self._buffer = bytearray()
        self._scanned = 0
        self._identifier = 0
        self._closed = False
        self._socket = address.connect(GREETING_TIMEOUT)
        try:
            self.version = self._greet()
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def _greet(self) -> tuple[int, int, int]:
        try:
            greeting = self._read_message(time.monotonic() + GREETING_TIMEOUT)
        except TargetTimeoutError:
            server = peer_process(self.fileno()) if self.address.path else 0
            raise TargetBusyError(
                f"{self.address} accepts connections but sends no QMP greeting"
                f"{client_of(self.address, server)}",
                "it is in use by another QMP client (a QMP socket serves one at a time; "
                "libvirt keeps its own), or it is no QMP socket: give QEMU one more with "
                "-qmp unix:PATH,server=on,wait=off",
            ) from None
        try:
            version = greeting["QMP"]["version"]["qemu"]
            return int(version["major"]), int(version["minor"]), int(version["micro"])
        except (KeyError, TypeError, ValueError):
            raise ProtocolError(f"{self.address} is not a QMP socket") from None

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def closed(self) -> bool:
        return self._closed

    def execute(self, command: str, **arguments: Any) -> Any:
        """Runs a command and returns its ``return`` value. Raises QmpError."""
        return self._execute(command, arguments, self.timeout)

    def _execute(self, command: str, arguments: dict[str, Any], timeout: float) -> Any:
        # The answer to a command that we gave up waiting for still comes: the
        # identifier tells it from the one to this command.
        self._identifier += 1
        request: dict[str, Any] = {"execute": command, "id": self._identifier}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): v for name, v in arguments.items()}
        deadline = time.monotonic() + timeout
        try:
            self._socket.settimeout(self.timeout)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError:
            raise self._timed_out() from None
        except OSError:
            raise self._gone() from None
        while True:
            message = self._read_message(deadline)
            if message.get("id") != self._identifier:
                continue
            if "return" in message:
                return message["return"]
            if "error" in message:
                error = message["error"]
                if not isinstance(error, dict):
                    raise ProtocolError(f"{self.address} refuses {command} with {error!r:.40}")
                raise QmpError(command, str(error.get("class")), str(error.get("desc")))

    def hmp(self, line: str, vcpu: int | None = None, timeout: float | None = None) -> str:
        """A command of the human monitor; returns what it prints. QEMU does
        nothing else meanwhile, and some take a minute: ``timeout`` is in seconds."""
        arguments: dict[str, Any] = {"command_line": line}
        if vcpu is not None:
            arguments["cpu_index"] = vcpu
        text = self._execute("human-monitor-command", arguments, timeout or self.timeout)
        return str(text).replace("\r\n", "\n")

    def poll(self) -> None:
        """Moves events that have arrived into :attr:`events`, without waiting.
        Raises TargetGoneError when QEMU has closed the connection; what it said
        before that is in :attr:`events`, too."""
        ended = False
        while not self._closed and not ended:
            self._socket.setblocking(False)
            try:
                piece = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            ended = not piece
            self._append(piece)
        while (message := self._take_line()) is not None:
            self._note_event(message)
        if ended:
            raise self._gone()

    def close(self) -> None:
        self._closed = True
        self._socket.close()

    def _read_message(self, deadline: float) -> dict[str, Any]:
        """The next message that is not an event."""
        while True:
            message = self._take_line()
            if message is None:
                self._receive(deadline)
            elif not self._note_event(message):
                return message

    def _receive(self, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise self._timed_out()
        try:
            self._socket.settimeout(remaining)
            piece = self._socket.recv(65536)
        except TimeoutError:
            raise self._timed_out() from None
        except OSError:
            raise self._gone() from None
        if not piece:
            raise self._gone()
        self._append(piece)

    def _append(self, piece: bytes) -> None:
        self._buffer += piece
        if len(self._buffer) > MAX_LINE:
            raise ProtocolError(f"{self.address} sends a line of more than {MAX_LINE} bytes")

    def _take_line(self) -> dict[str, Any] | None:
        end = self._message_end()
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._scanned = 0
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise ProtocolError(f"{self.address} is not a QMP socket: it sends {line[:40]!r}")
        return message

    def _message_end(self) -> int:
        """Where the first message ends, or -1 where it is not whole. That of a
        monitor with ``pretty=on`` ends with a brace at the start of a line."""
        end = self._buffer.find(b"\n", self._scanned)
        if end < 0:
            self._scanned = len(self._buffer)
            return -1
        if self._buffer[:end].rstrip() != b"{":
            return end
        brace = self._buffer.find(b"\n}", end)
        return -1 if brace < 0 else self._buffer.find(b"\n", brace + 1)

    def _note_event(self, message: dict[str, Any]) -> bool:
        if "event" not in message:
            return False
        data = message.get("data")
        self.events.append(QmpEvent(str(message["event"]), data if isinstance(data, dict) else {}))
        return True

    def _gone(self) -> TargetGoneError:
        self.close()
        return TargetGoneError(f"QEMU has closed its QMP connection {self.address}")

    def _timed_out(self) -> TargetTimeoutError:
        return TargetTimeoutError(f"QEMU does not answer on {self.address}")
