"""The monitor's client: a real QEMU, and peers that are none."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kvmgdb.errors import ProtocolError, TargetBusyError, TargetGoneError, TargetTimeoutError
from kvmgdb.machine import qmp as qmp_module
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.qmp import Qmp, QmpError
from tests.machine.rom_guest import RomGuest

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 2, "minor": 1, "major": 9}, "package": ""}, '
    b'"capabilities": []}}\r\n'
)


@pytest.fixture
def qmp(rom_guest: RomGuest) -> Iterator[Qmp]:
    client = Qmp(SocketAddress(path=str(rom_guest.qmp_socket)))
    yield client
    client.close()


def test_commands(qmp: Qmp) -> None:
    assert qmp.execute("query-status")["status"] in ("prelaunch", "paused")
    machine = qmp.execute("qom-get", path="/machine", property="type")
    assert machine.startswith("pc-i440fx")
    assert qmp.version >= (5, 0, 0)
    assert "VM status" in qmp.hmp("info status")
    assert "CPU#1" in qmp.hmp("info registers", 1)


def test_errors_of_commands(qmp: Qmp) -> None:
    with pytest.raises(QmpError, match="QEMU refused no-such-command") as caught:
        qmp.execute("no-such-command")
    assert caught.value.error_class == "CommandNotFound"
    with pytest.raises(QmpError, match="integer"):
        qmp.execute("pmemsave", val="x", size=1, filename="/dev/null")
    # The connection is as good as before.
    assert qmp.execute("query-name") == {}


def test_events(qmp: Qmp) -> None:
    qmp.execute("cont")
    qmp.execute("stop")
    qmp.poll()
    assert [event.name for event in qmp.events][-2:] == ["RESUME", "STOP"]


def test_a_second_client_is_told_who_is_there(qmp: Qmp, rom_guest: RomGuest) -> None:
    begin = time.monotonic()
    with pytest.raises(TargetBusyError, match="sends no QMP greeting") as caught:
        Qmp(SocketAddress(path=str(rom_guest.qmp_socket)))
    assert time.monotonic() - begin < 30
    assert "one at a time" in caught.value.remedy
    assert qmp.execute("query-name") == {}


def test_a_qemu_that_exits() -> None:
    with RomGuest() as guest:
        client = Qmp(SocketAddress(path=str(guest.qmp_socket)))
        guest.process.kill()
        guest.process.wait()
        with pytest.raises(TargetGoneError):
            client.execute("query-status")
        assert client.closed


Serve = Callable[[socket.socket], object]


@contextmanager
def peer(directory: Path, serve: Serve) -> Iterator[SocketAddress]:
    """A listening socket whose first client ``serve`` gets."""
    path = directory / "peer"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(60)
                with suppress(OSError):  # the client has had enough
                    serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield SocketAddress(path=str(path))
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\xff\xfe\x00\n",
        b"[]\n",
        b"42\n",
        b'{"QMP": 1}\n',
        b"{}\n",
        b'{"QMP": {"version": {"qemu": {"major": "x", "minor": 1, "micro": 1}}}}\n',
        b"\n",
        b"{" * 100000 + b"\n",
        b"[" * 100000 + b"\n",
    ],
)
def test_a_peer_that_is_no_monitor(tmp_path: Path, sent: bytes) -> None:
    with (
        peer(tmp_path, lambda c: c.sendall(sent)) as address,
        pytest.raises(ProtocolError, match="not a QMP socket"),
    ):
        Qmp(address)


def test_a_peer_that_hangs_up(tmp_path: Path) -> None:
    with peer(tmp_path, lambda c: None) as address, pytest.raises(TargetGoneError):
        Qmp(address)


def test_a_peer_that_says_nothing(tmp_path: Path) -> None:
    with peer(tmp_path, lambda c: c.recv(1)) as address:
        begin = time.monotonic()
        with pytest.raises(TargetBusyError):
            Qmp(address)
        assert time.monotonic() - begin < 30


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp_module, "MAX_LINE", 1 << 20)

    def flood(connection: socket.socket) -> None:
        for _ in range(1000):
            connection.sendall(b"x" * 65536)

    with peer(tmp_path, flood) as address, pytest.raises(ProtocolError, match="more than"):
        Qmp(address)


def greet_then(answer: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        connection.recv(4096)
        connection.sendall(b'{"return": {}, "id": 1}\n')
        connection.recv(4096)
        connection.sendall(answer)
        connection.recv(4096)

    return serve


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"junk\n", ProtocolError),
        (b'{"event": "X"}\n' * 3, TargetTimeoutError),
        (b'{"error": {}, "id": 2}\n', QmpError),
        (b'{"error": 1, "id": 2}\n', ProtocolError),
        (b'{"event": "X", "data": 1}\n{"return": 4, "id": 1}\n{"return": 5, "id": 2}\n', None),
        (b'{"return": 5}\n', TargetTimeoutError),
    ],
)
def test_answers_that_are_none(
    tmp_path: Path, answer: bytes, error: type[Exception] | None
) -> None:
    with peer(tmp_path, greet_then(answer)) as address:
        client = Qmp(address, timeout=2.0 if error is TargetTimeoutError else 60.0)
        assert client.version == (9, 1, 2)
        if error is None:
            assert client.execute("query-status") == 5
        else:
            with pytest.raises(error):
                client.execute("query-status")
        client.close()
