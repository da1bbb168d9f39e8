"""QEMU with arbitrary arguments, and its monitor as a second opinion."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from kvmgdb.demo.guest import TCG
from kvmgdb.demo.qemu import QemuProcess

KVM = ("-accel", "kvm", "-cpu", "kvm64,-cx16")
START_SECONDS = 60.0

__all__ = ["KVM", "MEMORY_BACKENDS", "TCG", "Qemu", "free_port", "memory_arguments", "qmp"]

MEMORY_BACKENDS = ("private", "shared", "memfd")


def memory_arguments(megabytes: int, backend: str = "private") -> list[str]:
    """QEMU's arguments for RAM that is private anonymous memory, a shared
    anonymous mapping, or a sealed memfd."""
    if backend == "private":
        return ["-m", f"{megabytes}M"]
    objects = {
        "shared": f"memory-backend-ram,id=ram,size={megabytes}M,share=on",
        "memfd": f"memory-backend-memfd,id=ram,size={megabytes}M,share=on",
    }
    return [
        *("-m", f"{megabytes}M"),
        *("-object", objects[backend]),
        *("-machine", "memory-backend=ram"),
    ]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def qmp(path: Path, command: str, **arguments: Any) -> Any:
    """One command to a QMP socket: connects, asks, disconnects. Returns the answer's
    ``return``; raises RuntimeError with QEMU's own words."""
    deadline = time.monotonic() + START_SECONDS
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(START_SECONDS)
        while True:
            try:
                connection.connect(str(path))
                break
            except ConnectionRefusedError:  # between bind and listen
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        with connection.makefile("rwb") as stream:
            json.loads(stream.readline())  # the greeting
            _ask(stream, "qmp_capabilities", {})
            return _ask(stream, command, arguments)


def _ask(stream: Any, command: str, arguments: dict[str, Any]) -> Any:
    stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    stream.flush()
    while line := stream.readline():
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"QEMU: {answer['error']['desc']}")
        if "return" in answer:
            return answer["return"]
    raise RuntimeError("QEMU closed its monitor")


class Qemu(QemuProcess):
    """QEMU with ``arguments``; it has started when the constructor returns."""

    def __init__(self, *arguments: str, pass_fds: tuple[int, ...] = ()) -> None:
        super().__init__(["-display", "none", *arguments], pass_fds=pass_fds)
        while self.running and not self.qmp_socket.exists():
            time.sleep(0.01)
        try:
            self.qmp("query-status")
        except (OSError, RuntimeError, ValueError) as error:
            printed = self.printed()
            self.close()
            raise AssertionError(f"QEMU did not start ({error}): {printed}") from error

    def qmp(self, command: str, **arguments: Any) -> Any:
        return qmp(self.qmp_socket, command, **arguments)

    def hmp(self, line: str) -> str:
        """A line for the human monitor, and what it prints."""
        return str(self.qmp("human-monitor-command", **{"command-line": line}))

    def __enter__(self) -> Qemu:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
