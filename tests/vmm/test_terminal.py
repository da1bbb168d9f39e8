"""Input and output: pipes, nothing at all, a terminal, a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vmm.vmm import GUESTS, PROGRAM, SECONDS, Vmm, run

ECHO = GUESTS / "echo.elf"
HALT = GUESTS / "halt.elf"
ECHO_LEFT = 0x03 << 1 | 1
_TIOCGPTN = 0x80045430  # asm-generic/ioctls.h


def read_until(descriptor: int, text: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + SECONDS
    while text not in seen:
        left = deadline - time.monotonic()
        assert left > 0, f"no {text!r} in {seen!r}"
        if select.select([descriptor], [], [], left)[0]:
            seen += os.read(descriptor, 4096)
    return seen


def test_input_from_a_pipe_reaches_the_guest_by_interrupt() -> None:
    text = b"The quick brown fox jumps over the lazy dog. " * 20
    with Vmm("-m", "64M", ECHO, stdin=subprocess.PIPE) as vmm:
        vmm.wait_output(b"ready\n")
        assert vmm.process.stdin
        vmm.process.stdin.write(text.replace(b"q", b"Q"))
        vmm.process.stdin.flush()
        vmm.wait_output(text.replace(b"q", b"Q"))
        vmm.process.stdin.write(b"q")
        vmm.process.stdin.close()
        assert vmm.wait_end() == ECHO_LEFT


def test_end_of_input_is_no_end_of_the_machine() -> None:
    with Vmm("-m", "64M", ECHO) as vmm:
        vmm.wait_output(b"ready\n")
        time.sleep(0.2)
        assert vmm.state() == "running"


def test_it_works_with_all_standard_descriptors_closed(tmp_path: Path) -> None:
    """None of its own descriptors may take their place: the control socket answers."""
    path = tmp_path / "control"
    process = subprocess.Popen(
        [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            "sh",
            "-c",
            f"exec {PROGRAM} -m 64M --control {path} {HALT} <&- >&- 2>&-",
        ],
    )
    try:
        for descriptor in range(3):
            deadline = time.monotonic() + SECONDS
            link = Path(f"/proc/{process.pid}/fd/{descriptor}")
            while not path.exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert str(link.readlink()) == "/dev/null"
    finally:
        process.terminate()
        assert process.wait(SECONDS) == 0


def test_without_a_serial_port_nothing_is_printed() -> None:
    result = run("-m", "64M", "--serial", "none", "--exit-on-fault", GUESTS / "triple.elf")
    assert result.stdout == ""
    assert result.returncode == 6


def test_a_reader_that_goes_away_does_not_stop_the_guest() -> None:
    reader, writer = os.pipe()
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", PROGRAM, "-m", "64M", GUESTS / "reset.elf"],
        stdin=subprocess.DEVNULL,
        stdout=writer,
    ) as process:
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        assert process.wait(90) == 0x21 << 1 | 1


class Terminal:
    """The VMM in the foreground of a terminal of its own; we hold the other end."""

    def __init__(self, *arguments: str | Path) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.execv(PROGRAM, [str(PROGRAM), *map(str, arguments)])

    @property
    def name(self) -> str:
        number = fcntl.ioctl(self.master, _TIOCGPTN, bytes(4))
        return f"/dev/pts/{int.from_bytes(number, 'little')}"

    @property
    def mode(self) -> list[Any]:
        return termios.tcgetattr(self.master)

    def is_raw(self) -> bool:
        return not self.mode[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def wait(self) -> int:
        """The wait status."""
        deadline = time.monotonic() + SECONDS
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return status
            assert time.monotonic() < deadline
            # A terminal that nobody reads would hold back its last output.
            if select.select([self.master], [], [], 0.02)[0]:
                try:
                    os.read(self.master, 4096)
                except OSError:
                    time.sleep(0.02)


ENDINGS: dict[str, tuple[Callable[[Terminal], object], int]] = {
    "SIGTERM": (lambda t: os.kill(t.pid, signal.SIGTERM), 0),
    "SIGINT": (lambda t: os.kill(t.pid, signal.SIGINT), 0),
    "SIGHUP": (lambda t: os.kill(t.pid, signal.SIGHUP), 0),
    "SIGSEGV": (lambda t: os.kill(t.pid, signal.SIGSEGV), signal.SIGSEGV),
    "SIGABRT": (lambda t: os.kill(t.pid, signal.SIGABRT), signal.SIGABRT),
    "Ctrl-A x": (lambda t: os.write(t.master, b"\x01x"), 0),
    "exit port": (lambda t: os.write(t.master, b"q"), ECHO_LEFT << 8),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_terminal_is_raw_meanwhile_and_restored_however_it_ends(ending: str) -> None:
    terminal = Terminal("-m", "64M", ECHO)
    # Kept open, or the terminal would lose its mode with its last user.
    other = os.open(terminal.name, os.O_RDWR | os.O_NOCTTY)
    try:
        read_until(terminal.master, b"ready")
        assert terminal.is_raw()
        end, expected = ENDINGS[ending]
        end(terminal)
        status = terminal.wait()
        assert status & ~0x80 == expected
        assert not terminal.is_raw()
        assert terminal.mode[3] & termios.ECHO
    finally:
        os.close(other)
        os.close(terminal.master)


def test_ctrl_c_and_ctrl_a_reach_the_guest() -> None:
    terminal = Terminal("-m", "64M", ECHO)
    try:
        read_until(terminal.master, b"ready")
        os.write(terminal.master, b"\x03\x01\x01!")
        assert read_until(terminal.master, b"!").endswith(b"\x03\x01!")
        os.write(terminal.master, b"q")
        assert os.waitstatus_to_exitcode(terminal.wait()) == ECHO_LEFT
    finally:
        os.close(terminal.master)


def test_a_command_that_cannot_start_leaves_the_terminal_alone() -> None:
    terminal = Terminal("-m", "1M", ECHO)
    other = os.open(terminal.name, os.O_RDWR | os.O_NOCTTY)
    try:
        assert os.waitstatus_to_exitcode(terminal.wait()) == 4
        assert terminal.mode[3] & termios.ECHO
    finally:
        os.close(other)
        os.close(terminal.master)


def test_the_serial_port_on_a_pseudo_terminal() -> None:
    with Vmm("-m", "64M", "--serial", "pty", ECHO) as vmm:
        name = vmm.command("status")["serial"]
        assert f"serial port is {name}\n".encode() in vmm.errors
        for text in (b"first", b"second"):
            line = os.open(name, os.O_RDWR | os.O_NOCTTY)
            try:
                if text == b"first":
                    # Printed before anybody was there to read it.
                    read_until(line, b"echo: 1 vCPUs\nready\n")
                os.write(line, text)
                read_until(line, text)
            finally:
                os.close(line)
            time.sleep(0.5)
        assert vmm.output == b""
        line = os.open(name, os.O_RDWR | os.O_NOCTTY)
        try:
            os.write(line, b"q")
            assert vmm.wait_end() == ECHO_LEFT
        finally:
            os.close(line)
