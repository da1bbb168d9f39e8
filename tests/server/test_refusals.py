"""What cannot be served, or not there: one clear sentence, and exit status 1."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmgdb.errors import ListenError
from kvmgdb.machine.interface import Machine
from kvmgdb.rsp.debuggee import Debuggee
from kvmgdb.rsp.server import ListenAddress, Server
from tests.server.conftest import FIRMWARE
from tests.support.qemu import TCG, Qemu, free_port
from tests.support.require import requires_qemu
from tests.support.rsp import RawClient
from tests.support.served import WatchedGuest, has_stub
from tests.support.server import KVMGDB, ROOT, KvmgdbServer, kvmgdb

pytestmark = requires_qemu


def _refused(*arguments: str, status: int = 1) -> str:
    """Runs a command that must fail, and returns its one message."""
    done = kvmgdb(*arguments)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def _serve_refused(target: str, status: int = 1) -> str:
    return _refused("serve", target, "--listen", "127.0.0.1:0", status=status)


def test_port_in_use(firmware: Qemu) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        text = _refused("serve", str(firmware.pid), "--listen", f"127.0.0.1:{port}")
        assert re.search(
            rf"cannot listen on 127.0.0.1:{port}: it is in use by PID {os.getpid()} \(\w+", text
        )
        assert "--listen" in text
    assert firmware.qmp("query-status")["running"]


def test_unix_socket_in_use(firmware: Qemu, tmp_path: Path) -> None:
    path = tmp_path / "gdb"
    with KvmgdbServer(str(firmware.pid), listen=f"unix:{path}"):
        text = _refused("serve", str(firmware.pid), "--listen", f"unix:{path}")
        assert f"cannot listen on unix:{path}: it is in use" in text
    assert not path.exists()


def test_a_file_is_not_overwritten(firmware: Qemu, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    text = _refused("serve", str(firmware.pid), "--listen", f"unix:{path}")
    assert "it exists and is no socket" in text
    assert path.read_text() == "data"


def test_a_socket_of_a_dead_server_is_replaced(firmware: Qemu, tmp_path: Path) -> None:
    path = tmp_path / "gdb"
    with KvmgdbServer(str(firmware.pid), listen=f"unix:{path}") as dead:
        dead.kill()
    assert path.exists()
    with KvmgdbServer(str(firmware.pid), listen=f"unix:{path}") as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        with RawClient(server.address) as client:
            assert client.request(b"?").startswith(b"T05")


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1:99999", "unix:", ":", "127.0.0.1:x"])
def test_listen_address_that_is_none(firmware: Qemu, listen: str) -> None:
    text = _refused("serve", str(firmware.pid), "--listen", listen, status=2)
    assert "address" in text or "socket path" in text


def test_qmp_socket_that_is_not_qmp(tmp_path: Path) -> None:
    """QEMU's human monitor answers, in its own words."""
    path = tmp_path / "hmp"
    with Qemu(*TCG, "-m", "32M", "-monitor", f"unix:{path},server=on,wait=off"):
        text = _serve_refused(f"qmp:{path}")
        assert f"unix:{path} is not a QMP socket" in text


def test_qmp_socket_that_another_client_holds(firmware: Qemu) -> None:
    with socket.socket(socket.AF_UNIX) as holder:
        holder.connect(str(firmware.qmp_socket))
        assert b"QMP" in holder.recv(4096)
        for target in (f"qmp:{firmware.qmp_socket}", str(firmware.pid)):
            text = _serve_refused(target)
            assert "in use by another QMP client" in text
            assert "-qmp unix:PATH" in text
    with KvmgdbServer(f"qmp:{firmware.qmp_socket}"):
        pass


def test_qmp_socket_that_is_not_there(tmp_path: Path) -> None:
    assert "nobody listens on" in _serve_refused(f"qmp:{tmp_path}/none")
    assert "nobody listens on" in _serve_refused(f"rsp:127.0.0.1:{free_port()}")


def test_a_server_that_is_no_stub(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = subprocess.Popen(
            [*KVMGDB, "serve", f"rsp:127.0.0.1:{port}", "--listen", "127.0.0.1:0"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = other.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        _, text = process.communicate(timeout=90)
    assert process.returncode == 1
    assert re.search(r"127.0.0.1:\d+ (has closed|does not)", text), text
    assert "Traceback" not in text


def test_pid_that_is_no_qemu() -> None:
    text = _serve_refused(str(os.getpid()))
    assert re.search(rf"(?i)PID {os.getpid()}\b", text)
    assert "kvmgdb list" in text


def test_pid_that_is_not_there() -> None:
    assert "4194304" in _serve_refused("4194304")


def test_name_that_is_not_there() -> None:
    text = _serve_refused("no-such-machine")
    assert "no-such-machine" in text
    assert "kvmgdb list" in text


def test_name_that_two_have(firmware: Qemu) -> None:
    with Qemu(*TCG, "-m", "32M", "-name", FIRMWARE) as other:
        text = _serve_refused(FIRMWARE)
        assert f"{firmware.pid}" in text
        assert f"{other.pid}" in text


def test_no_name_and_two_machines(firmware: Qemu) -> None:
    with Qemu(*TCG, "-m", "32M", "-name", "kvmgdb-other") as other:
        text = _refused("serve", "--listen", "127.0.0.1:0")
        for pid, name in ((firmware.pid, FIRMWARE), (other.pid, "kvmgdb-other")):
            assert re.search(rf"\b{pid} +.*{name}", text)


@pytest.fixture
def without_monitor() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-nodefaults"),
            *("-display", "none", "-accel", "tcg", "-m", "32M", "-name", "kvmgdb-mute"),
        ]
    ) as process:
        yield process
        assert process.poll() is None
        process.kill()


def test_without_any_monitor(without_monitor: subprocess.Popen[bytes]) -> None:
    pid = without_monitor.pid
    while b"qemu" not in os.readlink(f"/proc/{pid}/exe").encode():
        pass
    text = _serve_refused(str(pid))
    assert f"PID {pid} listens on no QMP socket" in text
    assert "-qmp unix:PATH" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root can")
def test_another_user_is_denied(guest: WatchedGuest) -> None:
    done = subprocess.run(
        [
            *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"),
            *(*KVMGDB, "serve", str(guest.pid), "--listen", "127.0.0.1:0"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "denies" in done.stderr
    assert "as root or as the user who owns the virtual machine" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root can")
def test_another_user_who_may_use_the_monitor_only() -> None:
    """The monitor's socket is open to all. The process's memory is not, and the socket
    that QEMU opens for its stub is its own user's: the debugger is told, and QEMU is
    left as it was."""
    with Qemu(*TCG, "-m", "32M") as qemu:
        qemu.directory.chmod(0o755)
        qemu.qmp_socket.chmod(0o777)
        nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")
        with KvmgdbServer(f"qmp:{qemu.qmp_socket}", prefix=nobody) as server:
            server.wait_printed("guest memory is read through the stub, slowly: no access")
            with RawClient(server.address) as client:
                reply = client.request(b"qSupported:error-message+")
                assert reply.startswith(b"E.the host denies access to unix:")
                assert b"as the user who owns the virtual machine" in reply
        assert not has_stub(qemu.qmp)
        assert qemu.qmp("query-status")["running"]


def test_too_few_open_files_allowed(firmware: Qemu) -> None:
    """Where guest memory cannot be opened for the limit, nothing is told of the guest."""
    for command in (["info"], ["serve", "--listen", "127.0.0.1:0"]):
        done = subprocess.run(
            ["sh", "-c", 'ulimit -n 7; exec "$@"', "sh", *KVMGDB, *command, str(firmware.pid)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 1, done.stderr
        assert "Too many open files" in done.stderr
        assert "`ulimit -n 1024`" in done.stderr
        assert "Traceback" not in done.stderr


def test_no_socket_left_to_listen_on() -> None:
    def never() -> Machine:
        raise AssertionError("nothing is opened before a debugger comes")

    async def start() -> None:
        server = Server(Debuggee(never, print), ListenAddress.parse("127.0.0.1:0"))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            await server.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    with pytest.raises(ListenError, match="the host gave no socket"):
        asyncio.run(start())
