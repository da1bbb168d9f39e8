"""``kvmgdb demo`` as a user runs it."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import leftovers
from tests.support.require import SYSTEM_GDB, requires

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, "-m", "kvmgdb", "demo"]

pytestmark = [requires("qemu", "gdb", "cc"), pytest.mark.usefixtures("linux_kernel")]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No process of the demo outlives it, but for what gives a guest back after a crash."""
    before = {leftover.pid for leftover in leftovers.find()}
    yield
    deadline = time.monotonic() + 60
    while new := [left for left in leftovers.find() if left.pid not in before]:
        assert time.monotonic() < deadline, f"left running: {new}"
        time.sleep(0.05)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_batch(gdb_path: str) -> None:
    result = run("--batch", "--gdb", gdb_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("   ok: ") == 12
    assert "failed" not in result.stdout
    assert '"vCPU 1 ' in result.stdout
    assert "(gdb) continue" in result.stdout
    assert "Linux version" in result.stdout
    assert "\x1b" not in result.stdout
    assert result.stdout.endswith("and growing\n")


def test_without_a_terminal_it_is_batch() -> None:
    result = run("--gdb", SYSTEM_GDB)
    assert result.returncode == 0
    assert "detached]" in result.stdout


def test_a_debugger_that_shows_nothing() -> None:
    result = run("--batch", "--gdb", "/bin/true")
    assert result.returncode == 1
    assert "kvmgdb: the demo did not do what it says" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_debugger_that_is_not_there() -> None:
    result = run("--batch", "--gdb", "no-such-gdb")
    assert result.returncode == 1
    assert "there is no program no-such-gdb" in result.stderr


def test_a_path_too_long_for_sockets(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    result = run("--batch", "--gdb", SYSTEM_GDB, TMPDIR=str(deep))
    assert result.returncode == 1
    assert "too long a path for a Unix socket" in result.stderr


@contextmanager
def started(directory: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*DEMO, "--batch", "--gdb", SYSTEM_GDB],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": directory, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "status", "moment"),
    [
        (signal.SIGINT, 130, "booting"),
        (signal.SIGINT, 130, "kvmgdb serve"),
        (signal.SIGINT, 130, "(gdb) info registers"),
        (signal.SIGTERM, 143, "booting"),
        (signal.SIGHUP, 129, "kvmgdb serve"),
        (signal.SIGKILL, -9, "(gdb) info registers"),
    ],
)
def test_signals(number: signal.Signals, status: int, moment: str) -> None:
    with tempfile.TemporaryDirectory() as directory, started(directory) as process:
        assert process.stdout
        assert any(line.startswith(moment) for line in process.stdout)
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(60) == status
        assert "Traceback" not in rest
        if number != signal.SIGKILL:
            assert os.listdir(directory) == []


class Terminal:
    """The demo on a pseudo-terminal, as a person has it."""

    def __init__(self) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.environ["TERM"] = "xterm"
            os.execv(DEMO[0], [*DEMO, "--gdb", SYSTEM_GDB])
        self.seen = ""

    def expect(self, text: str, seconds: float = 90) -> None:
        """Reads until ``text`` comes, and drops what came up to its end."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self._fd], [], [], left)[0]
            assert ready, f"no {text!r} in {self.seen!r}"
            try:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"it ended without {text!r}: {self.seen!r}") from None
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self) -> int:
        """Waits for the end; the exit status."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._fd)
        return status


def test_interactive() -> None:
    terminal = Terminal()
    terminal.expect("GDB is yours")
    terminal.expect("(gdb) ")
    terminal.type("info threads\n")
    terminal.expect('"vCPU 1 ')
    terminal.type("continue\n")
    terminal.expect("Continuing.")
    time.sleep(2.0)  # until GDB no longer takes it for itself
    terminal.type("\x03")
    terminal.expect("SIGINT")
    terminal.type("detach\n")
    terminal.expect("detached]")
    terminal.type("quit\n")
    terminal.expect("and growing")
    assert terminal.end() == 0
