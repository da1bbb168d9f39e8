"""``vFile``: what is there, what is not, and what must not be."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

import pytest

from kvmgdb.errors import GuestDataError
from kvmgdb.symbols import SymbolFile
from tests.rsp.conftest import NewClient
from tests.rsp.wire import SECONDS, Client

_READ_ONLY, _WRITE_ONLY, _READ_WRITE, _CREATE = 0, 1, 2, 0x200
_ENOENT, _EBADF, _EINVAL, _EMFILE, _EROFS = b"2", b"9", b"16", b"18", b"1e"


@pytest.fixture
def own_file(client: Client) -> str:
    """A file that is there: the guest of these tests has no kernel of Linux's."""
    return client.session.debuggee.guest.files.name("some file", ".ko", "key", lambda: _file)


def _file() -> SymbolFile:
    return SymbolFile("some file", CONTENT, 0, None, ())


CONTENT = bytes(range(256)) * 600


def _open(client: Client, path: str, flags: int = _READ_ONLY) -> bytes:
    return client.ask(f"vFile:open:{path.encode().hex()},{flags:x},0".encode())


def test_read_a_file(client: Client, own_file: str) -> None:
    assert own_file == "/kvmgdb/some_file.ko"
    assert client.ask(b"vFile:setfs:1") == b"F0"
    number = _open(client, own_file)[1:]
    stat = client.ask(b"vFile:fstat:" + number)
    assert stat[:4] == b"F40;"
    assert len(stat) == 4 + 64
    assert int.from_bytes(stat[4 + 28 : 4 + 36], "big") == len(CONTENT)
    assert int.from_bytes(stat[4 + 8 : 4 + 12], "big") == 0o100444
    assert client.ask(b"vFile:stat:" + own_file.encode().hex().encode()) == stat
    assert client.ask(b"vFile:lstat:" + own_file.encode().hex().encode()) == stat
    read = b""
    while True:
        reply = client.ask(b"vFile:pread:%b,20000,%x" % (number, len(read)))
        match = re.match(rb"F([0-9a-f]+);", reply)
        assert match
        piece = reply[match.end() :]
        assert len(piece) == int(match[1], 16)
        if not piece:
            break
        assert len(piece) <= 0x10000
        read += piece
    assert read == CONTENT
    assert client.ask(b"vFile:pread:%b,10,ffffffffffffffff" % number) == b"F0;"
    assert client.ask(b"vFile:close:" + number) == b"F0"
    assert client.ask(b"vFile:pread:%b,10,0" % number) == b"F-1," + _EBADF


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/shadow", "/proc/self/mem", "/kvmgdb", "/kvmgdb/", "", "/"),
        *("/kvmgdb/../etc/shadow", "/kvmgdb/some_file.ko/", "just probing", "\0", "/" + "a" * 9000),
    ],
)
def test_the_hosts_files_are_not_there(client: Client, own_file: str, path: str) -> None:
    assert _open(client, path) == b"F-1," + _ENOENT
    assert client.ask(f"vFile:stat:{path.encode().hex()}".encode()) == b"F-1," + _ENOENT


@pytest.mark.parametrize("flags", [_WRITE_ONLY, _READ_WRITE, _CREATE, 0x400, 8, 0xFFFFFFFF])
def test_nothing_is_written(client: Client, own_file: str, flags: int) -> None:
    for path in (own_file, "/kvmgdb/new", "/etc/shadow"):
        assert _open(client, path, flags) == b"F-1," + _EROFS
    number = _open(client, own_file)[1:]
    assert client.ask(b"vFile:pwrite:%b,0,abc" % number) == b"F-1," + _EROFS
    assert client.ask(b"vFile:unlink:" + own_file.encode().hex().encode()) == b"F-1," + _EROFS


def test_open_files_are_bounded(client: Client, own_file: str) -> None:
    replies = [_open(client, own_file) for _ in range(100)]
    assert replies[-1] == b"F-1," + _EMFILE
    opened = [reply for reply in replies if not reply.startswith(b"F-1")]
    assert len(set(opened)) == len(opened) == 64
    assert client.ask(b"vFile:close:" + opened[0][1:]) == b"F0"
    assert _open(client, own_file) == opened[0]


@pytest.mark.parametrize(
    ("packet", "reply"),
    [
        (b"vFile:open:zz,0,0", b"E"),
        (b"vFile:open:61", b"F-1," + _EINVAL),
        (b"vFile:open:61,0", b"F-1," + _EINVAL),
        (b"vFile:pread:3,10", b"F-1," + _EINVAL),
        (b"vFile:pread:3,10,0", b"F-1," + _EBADF),
        (b"vFile:pread:-1,10,0", b"E"),
        (b"vFile:close:3", b"F-1," + _EBADF),
        (b"vFile:close:", b"E"),
        (b"vFile:fstat:ffffffffffffffff", b"F-1," + _EBADF),
        (b"vFile:readlink:61", b"F-1," + _EINVAL),
    ],
)
def test_malformed_requests(client: Client, packet: bytes, reply: bytes) -> None:
    assert client.ask(packet).startswith(reply)


@pytest.mark.parametrize("packet", [b"vFile:", b"vFile:open", b"vFile:mkdir:61,0"])
def test_unknown_requests(client: Client, packet: bytes) -> None:
    assert client.ask(packet) == b""


class _SlowFile:
    """A file that takes as long to build as a test likes."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.built = 0

    def read(self) -> Callable[[], SymbolFile]:
        return self._build

    def _build(self) -> SymbolFile:
        assert self.may_end.wait(SECONDS)
        self.built += 1
        return _file()


def test_others_do_not_wait_while_a_file_is_built(client: Client, new_client: NewClient) -> None:
    slow, files = _SlowFile(), client.session.debuggee.guest.files
    other = new_client("multiprocess")
    path = files.name("slow", ".ko", "key", slow.read)
    opens = f"vFile:open:{path.encode().hex()},0,0".encode()
    client.send(opens)
    assert client.quiet()
    assert other.ask(b"qfThreadInfo").startswith(b"m")
    # Ctrl-C ends the wait, not the building.
    client.feed(b"\x03")
    assert client.reply() == b"F-1,4"
    client.send(opens)
    other.send(opens)
    assert client.quiet()
    assert other.quiet()
    slow.may_end.set()
    assert [client.reply(), other.reply()] == [b"F3", b"F3"]
    assert slow.built == 1
    assert len(client.ask(b"vFile:fstat:3")) == 4 + 64


def test_a_debugger_goes_while_its_file_is_built(client: Client, new_client: NewClient) -> None:
    slow, files = _SlowFile(), client.session.debuggee.guest.files
    path = files.name("slow", ".ko", "key", slow.read)
    client.send(f"vFile:open:{path.encode().hex()},0,0".encode())
    client.close()
    other = new_client("multiprocess")
    # The guest was rebooted meanwhile: nobody is told of that file any more.
    files.keep(set())
    slow.may_end.set()
    assert _open(other, path) == b"F3"
    assert slow.built == 2


def test_a_file_that_cannot_be_built_is_tried_again(client: Client) -> None:
    failures = [GuestDataError("the guest's data is damaged"), RuntimeError("a mistake")]

    def build() -> SymbolFile:
        if failures:
            raise failures.pop(0)
        return _file()

    files = client.session.debuggee.guest.files
    path = files.name("bad", ".ko", "key", lambda: build)
    assert _open(client, path) == b"F-1,270f"
    assert files.notes([path]) == [f"{path}: the guest's data is damaged"]
    assert _open(client, path).startswith(b"E")
    assert _open(client, path) == b"F3"


def test_a_guest_without_linux(new_client: NewClient) -> None:
    """There is no kernel, and that breaks nothing."""
    client = new_client("multiprocess", "exec-events", "error-message")
    assert client.ask(b"qXfer:exec-file:read:1:0,1000") == b"E02"
    assert client.ask(b"qOffsets") == b""
    libraries = client.ask(b"qXfer:libraries:read::0,1000")
    assert libraries.startswith(b"l<?xml")
    assert b"<library " not in libraries
    assert client.ask(b"qXfer:auxv:read::0,1000") == b"l"
    assert client.ask(b"qXfer:vmcoreinfo:read::0,1000").startswith(b"E.")
    assert client.ask(b"qGetTLSAddr:p1.1,10,0").startswith(b"E.")
    assert "kernel       unknown: no Linux kernel is mapped" in client.monitor("info")
