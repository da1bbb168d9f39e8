"""Finds processes that the tests started and that outlived them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_VARIABLE = "KVMGDB_TEST_SESSION"


@dataclass(frozen=True)
class Leftover:
    pid: int
    command: str


def mark_session() -> None:
    """Puts into our environment, and so into that of all children, who started them."""
    os.environ[_VARIABLE] = f"{os.getpid()}-{time.monotonic_ns()}"


def find() -> list[Leftover]:
    """Processes of this session, other than ourselves. Zombies do not count."""
    token = f"{_VARIABLE}={os.environ[_VARIABLE]}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if token in (entry / "environ").read_bytes().split(b"\0"):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found.append(Leftover(int(entry.name), b" ".join(words).decode(errors="replace")))
        except OSError:
            continue  # it is gone, or another user's
    return found


def collect(patience: float = 30.0) -> list[Leftover]:
    """What is still there after ``patience`` seconds; it is killed."""
    deadline = time.monotonic() + patience
    while (found := find()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for leftover in found:
        os.kill(leftover.pid, signal.SIGKILL)
    return found
