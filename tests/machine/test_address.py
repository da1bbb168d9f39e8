"""Socket addresses, and what a user may call a machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kvmgdb.errors import (
    HostError,
    TargetGoneError,
    TargetNotFoundError,
    TargetTimeoutError,
    UsageError,
)
from kvmgdb.machine.address import SocketAddress, short_socket_path
from kvmgdb.machine.target import parse_target
from tests.support.qemu import free_port


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("1234", SocketAddress(host="127.0.0.1", port=1234)),
        (":1234", SocketAddress(host="127.0.0.1", port=1234)),
        ("localhost:1", SocketAddress(host="localhost", port=1)),
        ("tcp:10.0.0.1:65535", SocketAddress(host="10.0.0.1", port=65535)),
        ("[::1]:80", SocketAddress(host="::1", port=80)),
        ("[fe80::1%eth0]:80", SocketAddress(host="fe80::1%eth0", port=80)),
        ("unix:/a/b", SocketAddress(path="/a/b")),
        ("unix:@name", SocketAddress(path="@name")),
        ("unix:relative:1", SocketAddress(path="relative:1")),
    ],
)
def test_addresses(text: str, address: SocketAddress) -> None:
    assert SocketAddress.parse(text) == address
    assert SocketAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "host",
        "host:",
        "host:x",
        "1:2:3",
        "65536",
        "-1",
        "[::1]",
        "unix:",
        "unix:\x00",
        "::1:80",
        "host:\uff11\uff12",
        "a\x00b:1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    if text == "a\0b:1":
        with pytest.raises((HostError, TargetGoneError, UsageError)):
            SocketAddress.parse(text).connect(1)
    else:
        with pytest.raises(UsageError):
            SocketAddress.parse(text)


def test_nobody_listens(tmp_path: Path) -> None:
    for text in (str(free_port()), f"unix:{tmp_path}/none", "unix:@kvmgdb-nobody"):
        with pytest.raises(TargetGoneError, match="nobody listens on"):
            SocketAddress.parse(text).connect(1)


def test_what_is_no_socket(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    with pytest.raises((TargetGoneError, HostError)):
        SocketAddress(path=str(plain)).connect(1)


def test_a_full_backlog(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        clients: list[socket.socket] = []
        with pytest.raises(TargetTimeoutError):
            clients += [SocketAddress(path=path).connect(0.2) for _ in range(10)]
        for client in clients:
            client.close()


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    path = str(directory / "socket")
    assert len(path) > 107
    with socket.socket(socket.AF_UNIX) as listener:
        with short_socket_path(path) as name:
            listener.bind(name)
        listener.listen(1)
        SocketAddress(path=path).connect(1).close()
    assert os.path.exists(path)


@pytest.mark.parametrize(
    "text", ["rsp:", "rsp:nowhere", "rsp:1:2:3", "qmp:", "qmp:unix:", "", "\0"]
)
def test_targets_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        parse_target(text)


@pytest.mark.parametrize("text", ["no-such-machine", "1", "999999999999", "0", "ünï", "a,b"])
def test_targets_that_are_not_there(text: str) -> None:
    with pytest.raises(TargetNotFoundError):
        parse_target(text)


def test_descriptions() -> None:
    assert parse_target("rsp:localhost:1").description == "GDB stub at localhost:1"
    assert parse_target("rsp::1").stops_guest
    assert parse_target("qmp:/run/x").description == "QEMU at unix:/run/x"
    assert parse_target("qmp:1.2.3.4:5").description == "QEMU at 1.2.3.4:5"
    assert not parse_target("qmp:x").stops_guest
