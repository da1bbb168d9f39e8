"""``kvmgdb`` as a process of its own, with what it printed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kvmgdb.demo.process import end, start
from tests.support.polling import wait_for

START_SECONDS = 60.0
ROOT = Path(__file__).resolve().parents[2]
KVMGDB = (sys.executable, "-m", "kvmgdb")

_WAITING = re.compile(r"waiting for GDB: gdb -ex 'target remote (.+)'")


def kvmgdb(*arguments: str, seconds: float = 90.0) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself, such as ``kvmgdb list``."""
    return subprocess.run(
        [*KVMGDB, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )


class KvmgdbServer:
    """``kvmgdb serve TARGET`` (or another verb that serves), ready for GDB.

    ``address`` is what the server tells its user to give to ``target remote``.
    ``prefix`` is put before the command, as ``setpriv``. :meth:`close` fails
    where the server printed a traceback or did not end as it should.
    """

    def __init__(
        self,
        *arguments: str,
        verb: str = "serve",
        listen: str = "127.0.0.1:0",
        prefix: Sequence[str] = (),
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="kvmgdb-test-")
        self._log = Path(self._directory.name) / "log"
        self._expected_status: int | None = 0
        with self._log.open("wb") as log:
            self.process = start(
                [*prefix, *KVMGDB, verb, *arguments, "--listen", listen],
                output=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            )
        try:
            self.address = self.wait_printed(_WAITING.pattern, START_SECONDS)[1]
        except BaseException:
            end(self.process)
            self._directory.cleanup()
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def printed(self) -> str:
        """All that the server printed so far."""
        return self._log.read_text(errors="replace")

    def wait_printed(self, pattern: str, seconds: float = 60.0) -> re.Match[str]:
        """Waits for a line that matches; the server must not end before."""

        def found() -> re.Match[str] | None:
            ended = not self.running
            match = re.search(pattern, self.printed())
            if match is None and ended:
                raise AssertionError(f"the server ended; it printed: {self.printed()}")
            return match

        try:
            match = wait_for(f"the server prints {pattern!r}", found, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it printed: {self.printed()}") from None
        assert match is not None
        return match

    def kill(self) -> None:
        """Ends the server as a crash would."""
        self._expected_status = None
        self.process.kill()
        self.process.wait()

    def signal(self, number: int) -> int:
        """Sends a signal and returns the exit status."""
        self._expected_status = None
        self.process.send_signal(number)
        return self.process.wait(60)

    def wait(self, seconds: float = 60.0) -> int:
        """Waits until the server ends by itself; returns its exit status."""
        self._expected_status = None
        return self.process.wait(seconds)

    def close(self) -> None:
        try:
            if self._expected_status is not None and self.running:
                self.process.send_signal(signal.SIGTERM)
                self.process.wait(60)
            printed = self.printed()
            for mistake in ("Traceback", "internal error", "never retrieved", "never awaited"):
                assert mistake not in printed, printed
            assert self._expected_status in (None, self.process.returncode), printed
        finally:
            end(self.process)
            self._directory.cleanup()

    def __enter__(self) -> KvmgdbServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
