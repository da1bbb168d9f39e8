"""Real GDBs: in batch mode where the text matters, through GDB/MI elsewhere."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pygdbmi.IoManager import IoManager

COMMAND_SECONDS = 90.0
_QUIET = (
    "set debuginfod enabled off",
    "set pagination off",
    "set confirm off",
    "set tcp auto-retry off",
)


class GdbError(Exception):
    """GDB answered with an error; the text is GDB's."""


def _command(path: str, *arguments: str) -> list[str]:
    settings = [word for setting in _QUIET for word in ("-iex", setting)]
    return ["setpriv", "--pdeathsig", "KILL", "--", path, "-nx", "-q", *settings, *arguments]


def _environment() -> dict[str, str]:
    """Nothing of the developer's own: no Python, no locale, no terminal."""
    kept = {
        name: os.environ[name] for name in ("PATH", "KVMGDB_TEST_SESSION") if name in os.environ
    }
    return {**kept, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "TERM": "dumb"}


@dataclass(frozen=True)
class GdbOutput:
    """What ``gdb -batch`` printed, and its exit status."""

    stdout: str
    stderr: str
    status: int

    @property
    def text(self) -> str:
        return self.stdout + self.stderr


def gdb_batch(path: str, *commands: str, seconds: float = 180.0) -> GdbOutput:
    """Runs ``gdb -batch -ex COMMAND...``; a GDB that does not end in time fails the test."""
    arguments = [word for command in commands for word in ("-ex", command)]
    process = subprocess.Popen(
        _command(path, "-batch", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        raise AssertionError(
            f"{path} did not end within {seconds:.0f} s; it printed:\n{stdout}{stderr}"
        ) from None
    return GdbOutput(stdout, stderr, process.returncode)


class GdbSession:
    """One GDB that is driven through GDB/MI (GDB manual, "The GDB/MI Interface")."""

    def __init__(self, path: str) -> None:
        self._process = subprocess.Popen(
            _command(path, "--interpreter=mi3"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            start_new_session=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._io = IoManager(self._process.stdin, self._process.stdout, self._process.stderr, 0.01)
        self._token = 0
        self._records: list[dict[str, Any]] = []
        self.mi("-gdb-set mi-async on")

    def connect(self, address: str, seconds: float = COMMAND_SECONDS) -> str:
        """``target remote ADDRESS``; returns what GDB printed."""
        return self.cli(f"target remote {address}", seconds)

    def mi(self, command: str, seconds: float = COMMAND_SECONDS) -> dict[str, Any]:
        """One MI command; the payload of its result. Raises GdbError."""
        return self._execute(command, seconds)[0]

    def cli(self, command: str, seconds: float = COMMAND_SECONDS) -> str:
        """One command of GDB's command line; what it printed. Raises GdbError."""
        quoted = command.replace("\\", "\\\\").replace('"', '\\"')
        return self._execute(f'-interpreter-exec console "{quoted}"', seconds)[1]

    def value(self, expression: str) -> str:
        """The value of an expression, as ``print`` shows it."""
        return str(self.mi(f'-data-evaluate-expression "{expression}"')["value"])

    def integer(self, expression: str) -> int:
        """The value of an expression as an unsigned 64-bit integer."""
        return int(self.value(f"(unsigned long)({expression})").split()[0], 0)

    def resume(self, command: str = "-exec-continue") -> None:
        """Lets the guest run; drops the stops that were not waited for, also those
        that GDB had told and we had not read."""
        self._execute(command, COMMAND_SECONDS, keep_stops=False)

    def wait_stop(self, seconds: float = COMMAND_SECONDS) -> dict[str, Any]:
        """The next stop of the guest: the payload of ``*stopped``."""
        record = self._next(lambda r: r["type"] == "notify" and r["message"] == "stopped", seconds)
        payload = record["payload"]
        assert isinstance(payload, dict)
        return payload

    def run_to_stop(
        self, command: str = "-exec-continue", seconds: float = COMMAND_SECONDS
    ) -> dict[str, Any]:
        """:meth:`resume`, then :meth:`wait_stop`."""
        self.resume(command)
        return self.wait_stop(seconds)

    def interrupt(self, seconds: float = COMMAND_SECONDS) -> dict[str, Any]:
        """Stops a guest that runs."""
        self.mi("-exec-interrupt --all")
        return self.wait_stop(seconds)

    def close(self) -> None:
        """Ends GDB. A guest that it is connected to stays as the server leaves it."""
        try:
            self._send("-gdb-exit")
            self._process.wait(20)
        except (AssertionError, subprocess.TimeoutExpired):
            self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(OSError):  # what GDB did not take any more
                    stream.close()

    def kill(self) -> None:
        """Ends GDB as a crash would."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> GdbSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _execute(
        self, command: str, seconds: float, keep_stops: bool = True
    ) -> tuple[dict[str, Any], str]:
        self._token += 1
        token = self._token
        self._send(f"{token}{command}")
        printed: list[str] = []

        def is_result(record: dict[str, Any]) -> bool:
            if record["type"] in ("console", "target", "log") and record["payload"]:
                printed.append(str(record["payload"]))
            return bool(record["type"] == "result" and record["token"] == token)

        record = self._next(is_result, seconds, keep_stops)
        payload = record["payload"] or {}
        if record["message"] == "error":
            raise GdbError(str(payload.get("msg", "")))
        return payload, "".join(printed)

    def _send(self, command: str) -> None:
        try:
            self._io.write(command, raise_error_on_timeout=False, read_response=False)
        except OSError as error:
            raise AssertionError("GDB exited") from error

    def _next(
        self, wanted: Callable[[dict[str, Any]], bool], seconds: float, keep_stops: bool = True
    ) -> dict[str, Any]:
        """Takes the first record that is ``wanted``; keeps, or not, stops before it."""
        deadline = time.monotonic() + seconds
        while True:
            for index, record in enumerate(self._records):
                if wanted(record):
                    passed = self._records[:index]
                    kept = [r for r in passed if keep_stops and r["message"] == "stopped"]
                    self._records = kept + self._records[index + 1 :]
                    return record
            self._records = [r for r in self._records if r["message"] == "stopped"]
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"GDB did not answer within {seconds:.0f} s")
            if self._process.poll() is not None:
                raise AssertionError(f"GDB exited with status {self._process.returncode}")
            self._records += self._io.get_gdb_response(
                timeout_sec=min(left, 1.0), raise_error_on_timeout=False
            )
