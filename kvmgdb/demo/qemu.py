"""A QEMU process of our own, with a private directory and a monitor in it."""

from __future__ import annotations

import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from kvmgdb.demo.process import end, private_directory, start

PROGRAM = "qemu-system-x86_64"


class QemuProcess:
    """QEMU with ``arguments``, no default devices, and a QMP socket.

    It runs until :meth:`close`, until this object is gone, or until we die.
    ``qmp_socket`` takes one client at a time. ``directory`` is removed with it.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        directory: tempfile.TemporaryDirectory[str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        directory = directory or private_directory("qemu")
        self.directory = Path(directory.name)
        self.qmp_socket = self.directory / "qmp"
        self._log = self.directory / "qemu.log"
        with self._log.open("wb") as log:
            self.process = start(
                [
                    *(PROGRAM, "-nodefaults", "-no-user-config"),
                    *("-qmp", f"unix:{self.qmp_socket},server=on,wait=off"),
                    *arguments,
                ],
                output=log,
                pass_fds=pass_fds,
            )
        self.pid = self.process.pid
        self._finalizer = weakref.finalize(self, _clean_up, self.process, directory)

    @property
    def running(self) -> bool:
        """Whether the process is there (its guest may be stopped)."""
        return self.process.poll() is None

    def printed(self) -> str:
        """What QEMU itself printed: its reason where it did not start."""
        try:
            return self._log.read_text(errors="replace").strip() or "it printed nothing"
        except OSError:
            return "its log is gone"

    def close(self) -> None:
        """Ends QEMU and removes its directory. Idempotent."""
        self._finalizer()


def _clean_up(
    process: subprocess.Popen[bytes], directory: tempfile.TemporaryDirectory[str]
) -> None:
    end(process)
    directory.cleanup()
