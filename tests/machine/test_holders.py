"""Who is connected to what only one can use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvmgdb.errors import TargetBusyError, TargetNotFoundError
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.holders import client_of, command_of, process_state, stopped_process
from kvmgdb.machine.qemu import QemuMachine
from kvmgdb.machine.qemu_process import read_qemu_process
from kvmgdb.machine.qmp import Qmp
from kvmgdb.machine.target import parse_target
from tests.machine.rom_guest import RomGuest
from tests.support.polling import wait_for
from tests.support.qemu import free_port
from tests.support.require import requires

pytestmark = requires("qemu")

CLIENT = """
import socket, sys
if sys.argv[1]:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
else:
    connection = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
connection.recv(1)
print("connected", flush=True)
sys.stdin.read()
"""


@contextmanager
def client(address: SocketAddress, sends: bool = True) -> Iterator[int]:
    """The PID of a process that is connected to ``address``, and ``sends``: that has
    read what is sent there unasked."""
    script = CLIENT if sends else CLIENT.replace("connection.recv(1)\n", "")
    process = subprocess.Popen(
        [sys.executable, "-c", script, address.path, str(address.port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"connected\n"
        yield process.pid
    finally:
        process.stdin.close()
        process.wait(timeout=90)
        process.stdout.close()


def test_a_monitor_that_another_process_uses(rom_guest: RomGuest) -> None:
    address = SocketAddress(path=str(rom_guest.qmp_socket))
    with client(address) as pid, pytest.raises(TargetBusyError) as caught:
        Qmp(address)
    assert f"PID {pid}: {sys.executable} -c" in str(caught.value)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_stub_that_another_process_uses(rom_guest: RomGuest, kind: str) -> None:
    address = SocketAddress(host="127.0.0.1", port=free_port())
    if kind == "unix":
        address = SocketAddress(path=f"{rom_guest.qmp_socket}-stub")
    listening = f"unix:{address.path},server=on,wait=off" if address.path else f"tcp:{address}"
    rom_guest.hmp(f"gdbserver {listening}")
    process = read_qemu_process(rom_guest.pid)
    assert process is not None
    machine = QemuMachine.open_process(process)
    try:
        with client(address, sends=False) as pid, pytest.raises(TargetBusyError) as caught:
            machine.stop()
    finally:
        machine.close()
        rom_guest.hmp("gdbserver none")
    assert f"PID {pid}: {sys.executable} -c" in str(caught.value)


def test_nobody() -> None:
    assert client_of(SocketAddress(host="127.0.0.1", port=free_port()), os.getpid()) == ""
    assert client_of(SocketAddress(path="/nowhere"), os.getpid()) == ""
    assert client_of(SocketAddress(path="/nowhere"), 0) == ""


def test_a_command_is_fit_to_be_shown() -> None:
    arguments = ["-c", "print(flush=True); input()", "\x1b[2J" + 999 * "x"]
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    said = command_of(process.pid)
    process.communicate(b"\n", timeout=90)
    assert said.startswith(f"PID {process.pid}: {sys.executable} -c")
    assert " ?[2Jxxx" in said
    assert len(said) < 300
    assert command_of(0) == ""


def test_a_process_that_a_signal_has_stopped() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert stopped_process(process.pid) is None
            process.send_signal(signal.SIGSTOP)
            wait_for("the process is stopped", lambda: process_state(process.pid) == "T")
            for states in ("T", "Tt"):
                error = stopped_process(process.pid, states=states)
                assert error is not None
                assert f"PID {process.pid} does not answer: the process is stopped" in str(error)
                assert error.remedy.startswith(f"`kill -CONT {process.pid}`")
            assert stopped_process(process.pid, states="t") is None
        finally:
            process.kill()
        wait_for("it has ended", lambda: process_state(process.pid) == "Z")
        assert stopped_process(process.pid) is None
        with pytest.raises(TargetNotFoundError, match="has ended, and waits for its parent"):
            parse_target(str(process.pid))
    assert process_state(process.pid) == ""
    assert stopped_process(process.pid) is None
