"""``kvmgdb serve`` as a process of its own, as a user starts it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from kvmgdb.demo.process import end, private_directory, start
from kvmgdb.errors import MachineError

START_SECONDS = 20.0

# The flag of a listening socket in /proc/net/unix (__SO_ACCEPTCON, linux/net.h).
_LISTENING = 0x10000


class Server:
    """A server for the virtual machine ``target``, on a socket of its own.

    It accepts GDB when the constructor returns, and runs until :meth:`close`.
    Raises MachineError with the server's own words where it does not start.
    """

    def __init__(self, target: str) -> None:
        self._directory = private_directory("serve")
        self.socket = Path(self._directory.name) / "gdb"
        self._log = Path(self._directory.name) / "log"
        try:
            with self._log.open("wb") as log:
                serve = [sys.executable, "-m", "kvmgdb", "serve", target]
                self.process = start([*serve, "--listen", f"unix:{self.socket}"], output=log)
        except BaseException:
            self._directory.cleanup()
            raise
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _listens(self.socket):
            if self.process.poll() is not None:
                raise MachineError(f"`kvmgdb serve` did not start: {self.printed()}")
            if time.monotonic() > deadline:
                raise MachineError(f"`kvmgdb serve` does not listen: {self.printed()}")
            time.sleep(0.02)

    def printed(self) -> str:
        """What the server printed."""
        return self._log.read_text(errors="replace").strip() or "it printed nothing"

    def close(self) -> None:
        """Ends the server. Idempotent."""
        end(self.process)
        self._directory.cleanup()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _listens(path: Path) -> bool:
    """Whether somebody listens on a Unix socket; asks without connecting, because
    a connection is a client to the server."""
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines():
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == str(path):
            return bool(int(fields[3], 16) & _LISTENING)
    return False
