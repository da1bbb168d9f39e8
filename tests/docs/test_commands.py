"""What the documentation shows is true: its commands are run here."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kvmgdb.demo.initramfs import build_initramfs
from kvmgdb.demo.kernel import Kernel
from kvmgdb.demo.process import end
from kvmgdb.rsp.monitor import COMMANDS, OF_QEMU
from tests.docs.commands import ROOT, Session, comparable, sessions, setup_commands
from tests.guests.linux.fixtures import StartGuest
from tests.support.polling import wait_for
from tests.support.require import requires

_DEFAULT_PORT = 1234
_SERVES = ("kvmgdb serve", "kvmgdb run")


class Shell:
    """A directory and a PATH as a user has them, and what was started there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._background: list[tuple[subprocess.Popen[bytes], Path]] = []
        programs = directory / "bin"
        programs.mkdir()
        wrapper = programs / "kvmgdb"
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m kvmgdb "$@"\n')
        wrapper.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT),
        }

    def run(self, command: str, typed: Sequence[str] = ()) -> str:
        """Runs a command to its end, with no terminal; it must succeed."""
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=self.directory,
            env=self.environment,
            input="".join(f"{line}\n" for line in typed).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=240,
            check=False,
        )
        output = result.stdout.decode(errors="replace")
        assert result.returncode == 0, f"{command}: {output}"
        assert "Traceback" not in output, output
        return output

    def serve(self, command: str) -> None:
        """Runs a command that serves, until :meth:`stop`."""
        self.stop()
        log = self.directory / f"log{len(self._background)}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._background.append((process, log))
        wait_for(
            f"`{command}` serves",
            lambda: (
                "waiting for GDB" in log.read_text(errors="replace") or process.poll() is not None
            ),
        )
        assert process.poll() is None, log.read_text(errors="replace")

    def stop(self) -> None:
        while self._background:
            process, log = self._background.pop()
            end(process)
            assert "Traceback" not in log.read_text(errors="replace")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.stop()


def _default_port_is_free() -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _DEFAULT_PORT))
        except OSError:
            return False
    return True


@requires("qemu", "gdb", "cc")
@pytest.mark.parametrize("session", sessions(), ids=lambda session: session.page)
def test_commands_of_a_page(
    session: Session, shell: Shell, linux_kernel: Kernel, start_linux_guest: StartGuest
) -> None:
    if not _default_port_is_free():
        pytest.skip(f"port {_DEFAULT_PORT}, which the pages use, is taken on this machine")
    (shell.directory / "vmlinuz").symlink_to(linux_kernel.vmlinuz)
    (shell.directory / "initrd.img").symlink_to(build_initramfs())
    guest = None
    if any("vm1" in command.line for command in session.commands):
        guest = start_linux_guest(name="vm1")
    for each in session.commands:
        command = each.line
        if command.startswith(_SERVES):
            shell.serve(command)
            continue
        output = shell.run(command, each.typed)
        for line in each.shown if each.typed else ():
            assert comparable(line) in comparable(output), f"{line!r} is not in {output}"
        if "target remote" in command:
            assert re.search(r"^(0x[0-9a-f]{16} in|<signal handler called>)", output, re.M), output
        if "info threads" in command:
            assert '"vCPU 0 ' in output, output
            assert '"vCPU 1 ' in output, output
        if command == "kvmgdb list":
            assert "vm1" in output, output
    shell.stop()
    if guest is not None:
        assert guest.makes_progress()


@requires("qemu", "gdb", "cc")
def test_make_demo(shell: Shell) -> None:
    assert setup_commands() == ["make demo", "make test"]
    output = shell.run(f"make -C {shlex.quote(str(ROOT))} demo")
    assert "ok: two vCPUs" in output
    assert "and growing" in output


def test_every_monitor_command_is_documented() -> None:
    text = (ROOT / "docs" / "gdb.md").read_text()
    documented = set(re.findall(r"`monitor (\w+)", text)) - OF_QEMU
    assert documented == set(COMMANDS)
