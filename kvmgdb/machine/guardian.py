"""Gives a QEMU back when the kvmgdb that held it dies without doing so.

A QEMU whose debugger vanishes stays stopped, or stops for good at the next
breakpoint. The guardian is a small process of its own that holds one end of a
pipe: end-of-file without a word means that the other end was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kvmgdb.errors import KvmgdbError, TargetGoneError
from kvmgdb.machine.address import SocketAddress

_DISMISS = b"dismiss\n"
_RESUME = b"resume\n"
# A QEMU that is busy, or stopped by a signal, may take its time to answer.
_PATIENCE = 600.0
_PAUSE = 0.2


class Guardian:
    """The side of the pipe that the debugger holds."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._told_resume = False

    @classmethod
    def start(cls, what: dict[str, Any]) -> Guardian:
        """``what``: "qmp" and "stub" are addresses, "own" says whether the stub
        is ours to take down, "resume" whether the guest ran when we came."""
        process = subprocess.Popen(
            [sys.executable, "-m", "kvmgdb.machine.guardian", json.dumps(what)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A signal to the terminal's process group must not reach it.
            start_new_session=True,
        )
        return cls(process)

    def expect_resume(self) -> None:
        """From now on the guest is to run when we die."""
        if not self._told_resume:
            self._told_resume = True
            self._tell(_RESUME)

    def take_over(self) -> None:
        """The machine could not be given back: the guardian goes on trying."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def dismiss(self) -> None:
        """Everything was cleaned up; the guardian ends."""
        self._tell(_DISMISS)
        self.take_over()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, word: bytes) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(word)
                self._process.stdin.flush()


def clean_up(what: dict[str, Any], resume: bool) -> None:
    """Removes our breakpoints, takes down the stub that was ours, and lets the
    guest run if it is to. Tries until the dead process's connections are gone."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            _clean_up_once(what, resume)
            return
        except KvmgdbError:
            if not _listens(what["qmp"]):
                return
            time.sleep(_PAUSE)


def _listens(address: str) -> bool:
    """Whether the machine is still there."""
    try:
        SocketAddress.parse(address).connect(1.0).close()
    except TargetGoneError:
        return False
    except KvmgdbError:
        return True
    return True


def _clean_up_once(what: dict[str, Any], resume: bool) -> None:
    from kvmgdb.machine.qmp import Qmp
    from kvmgdb.machine.stub_client import StubClient

    qmp = Qmp(SocketAddress.parse(what["qmp"]))
    try:
        stub = SocketAddress.parse(what["stub"])
        # An earlier attempt may have taken the stub down already.
        with contextlib.suppress(TargetGoneError):
            client = StubClient(stub)
            client.drop_breakpoints(client.threads())
            client.request(b"Qqemu.PhyMemMode:0")
            client.close()
        if what["own"]:
            qmp.hmp("gdbserver none")
            shutil.rmtree(Path(stub.path).parent, ignore_errors=True)
        if resume:
            qmp.execute("cont")
    finally:
        qmp.close()


def main() -> None:
    what = json.loads(sys.argv[1])
    heard = b""
    while piece := os.read(0, 4096):
        heard += piece
    if _DISMISS not in heard:
        clean_up(what, bool(what["resume"]) or _RESUME in heard)


if __name__ == "__main__":
    main()
