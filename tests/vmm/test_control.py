"""The control socket: states, commands, clients that misbehave."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.vmm.vmm import GUESTS, PROGRAM, Control, Vmm, run

CHAIN = GUESTS / "chain.elf"


def test_status_says_what_there_is() -> None:
    with Vmm("-m", "128M", "-c", "2", CHAIN) as vmm:
        status = vmm.command("status")
        assert status == {
            "ok": True,
            "state": "running",
            "protocol": "pvh",
            "vcpus": 2,
            "memory": 128 << 20,
            "pid": vmm.pid,
            "resets": 0,
            "serial": None,
            "fault": None,
        }


def test_stop_stands_still_and_cont_goes_on() -> None:
    with Vmm("-m", "64M", "-c", "2", CHAIN) as vmm:
        vmm.wait_progress(CHAIN, 1)
        for _ in range(5):
            vmm.command("stop")
            vmm.wait_state("stopped")
            before = vmm.memory(0x100000, 0x40000)
            time.sleep(0.1)
            assert vmm.memory(0x100000, 0x40000) == before
            assert vmm.command("cont")["state"] == "running"
            vmm.wait_progress(CHAIN, 0)
            vmm.wait_progress(CHAIN, 1)


def test_paused_executes_nothing_until_cont() -> None:
    with Vmm("-m", "64M", "-c", "2", "-S", CHAIN) as vmm:
        assert vmm.state() == "paused"
        before = vmm.memory(0, 0x200000)
        assert vmm.command("stop")["state"] == "paused"
        time.sleep(0.3)
        assert vmm.memory(0, 0x200000) == before
        vmm.command("cont")
        vmm.wait_progress(CHAIN, 1)


def test_reset_while_running_runs_again() -> None:
    with Vmm("-m", "64M", "-c", "2", CHAIN) as vmm:
        vmm.wait_progress(CHAIN, 1, steps=1000)
        vmm.command("reset")
        assert vmm.wait_state("running")["resets"] == 1
        vmm.wait_output(b"chain: 2 vCPUs\nchain: 2 vCPUs\n")
        vmm.wait_progress(CHAIN, 1)


def test_reset_while_stopped_pauses_at_the_entry() -> None:
    with Vmm("-m", "64M", "-c", "2", "-S", CHAIN) as vmm:
        entry_state = vmm.memory(0, 0x200000)
        for round in range(1, 4):
            vmm.command("cont")
            vmm.wait_progress(CHAIN, 1)
            vmm.command("stop")
            vmm.wait_state("stopped")
            vmm.command("reset")
            assert vmm.wait_state("paused")["resets"] == round
            assert vmm.memory(0, 0x200000) == entry_state


def test_all_clients_hear_of_a_change() -> None:
    with Vmm("-m", "64M", CHAIN) as vmm, vmm.connect() as one, vmm.connect() as other:
        other.command("status")
        assert one.command("stop")["ok"]
        assert one.wait_event("stopped")["event"] == "state"
        assert other.wait_event("stopped")["event"] == "state"


def test_quit_ends_with_status_0_and_takes_the_socket_along() -> None:
    with Vmm("-m", "64M", "-c", "2", CHAIN) as vmm:
        assert stat.S_IMODE(os.stat(vmm.socket).st_mode) == 0o600
        vmm.command("quit")
        assert vmm.wait_end() == 0
        assert not vmm.socket.exists()


def test_several_commands_in_one_write_are_all_answered() -> None:
    with Vmm("-m", "64M", CHAIN) as vmm, vmm.connect() as control:
        control.send(b"status\nsta")
        assert control.line()["ok"]
        control.send(b"tus\nstatus\n")
        assert control.line()["ok"]
        assert control.line()["ok"]


@pytest.mark.parametrize("data", [b"fly\n", b"\n", b"\0status\n", b"status now\n"])
def test_an_unknown_command_is_an_error_and_no_more(data: bytes) -> None:
    with Vmm("-m", "64M", CHAIN) as vmm, vmm.connect() as control:
        control.send(data)
        answer = control.line()
        assert answer["ok"] is False
        assert "unknown command" in answer["error"]
        assert control.command("status")["state"] == "running"


def test_an_endless_line_ends_the_connection_only() -> None:
    with Vmm("-m", "64M", CHAIN) as vmm:
        with vmm.connect() as control:
            control.send(b"x" * 1000)
            assert control.line()["error"] == "line too long"
        assert vmm.state() == "running"


def test_clients_that_vanish_or_do_not_read_do_no_harm() -> None:
    with Vmm("-m", "64M", CHAIN) as vmm:
        for _ in range(20):
            with vmm.connect() as control:
                control.send(b"stat")
        deaf = vmm.connect()
        for _ in range(2000):
            try:
                deaf.send(b"status\n" * 20)
            except OSError:
                break
        assert vmm.state() == "running"
        vmm.wait_progress(CHAIN)
        del deaf


def test_a_ninth_client_is_turned_away() -> None:
    with Vmm("-m", "64M", CHAIN) as vmm:
        clients = [vmm.connect() for _ in range(8)]
        assert all(client.command("status")["ok"] for client in clients)
        with vmm.connect() as ninth:
            assert ninth.line() == {}
        for client in clients:
            client.__exit__()
        assert vmm.state() == "running"


def test_an_inherited_socket_is_a_client() -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "--",
                PROGRAM,
                "-m",
                "64M",
                "-S",
                "--control",
                f"fd:{theirs.fileno()}",
                CHAIN,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        ) as process,
    ):
        theirs.close()
        ours.settimeout(90)
        ours.sendall(b"status\n")
        assert b'"state":"paused"' in ours.recv(4096)
        ours.sendall(b"quit\n")
        assert process.wait(90) == 0


def test_the_socket_of_a_living_machine_is_not_taken() -> None:
    with Vmm("-m", "64M", CHAIN) as vmm:
        vmm.state()
        result = run("-m", "64M", "--control", vmm.socket, CHAIN)
        assert result.returncode == 4
        assert "in use by another machine" in result.stderr
        assert vmm.state() == "running"


def test_the_socket_of_a_dead_machine_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", PROGRAM, "-m", "64M", "--control", path, CHAIN],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        process.stdout.read(1)
        with Control(path) as control:
            control.command("quit")
        assert process.wait(90) == 0


def test_a_file_in_the_way_of_the_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("keep")
    result = run("-m", "64M", "--control", path, CHAIN)
    assert result.returncode == 4
    assert "cannot make control socket" in result.stderr
    assert path.read_text() == "keep"
