"""Every status of the library is its exception: brought about for real, but for
what a test cannot have of the host."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

import pytest

from kvmgdb._native import ffi, lib
from kvmgdb.errors import (
    AccessDeniedError,
    GuestDataError,
    HostError,
    InvalidRangeError,
    KvmgdbError,
    MemoryFault,
    NoRamError,
    NotFoundError,
    ReadOnlyMemoryError,
    TargetGoneError,
)
from kvmgdb.machine import native
from kvmgdb.machine.native import Memory, Paging
from tests.native.guest import BASE, Guest


def _status_codes() -> dict[str, int]:
    return {name: getattr(lib, name) for name in dir(lib) if name.startswith("KVMGDB_ERR_")}


def _gone() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        memory = Memory(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with memory:
        memory.add_process(0, 0x1000, 0x400000)
        memory.read(0, 16)


def _not_mapped() -> None:
    with Guest() as guest:
        guest.map(BASE, 0x5000)
        guest.memory.read_virtual(guest.paging, BASE + 0x1000, 4)


def _no_ram() -> None:
    with Memory() as memory:
        memory.read(0x1234, 1)


def _invalid() -> None:
    with Memory() as memory:
        memory.read((1 << 64) - 1, 2)


def _read_only() -> None:
    with Guest() as guest:
        guest.memory.clear()
        guest.memory.add_file(0x8000, 0x1000, guest.fd, read_only=True)
        guest.memory.write(0x8010, b"x")


def _io() -> None:
    def read(gpa: int, length: int) -> bytes:
        raise OSError

    with Memory() as memory:
        memory.add_callback(0, 0x1000, read)
        memory.read(0, 1)


def _made_up(status: str, os_error: int) -> Callable[[], None]:
    def run() -> None:
        error = ffi.new("struct kvmgdb_error *", {"os_error": os_error})
        raise native.ERRORS[getattr(lib, status)](error)

    return run


CASES: dict[str, tuple[Callable[[], None], type[KvmgdbError], dict[str, int]]] = {
    "KVMGDB_ERR_NO_MEMORY": (
        _made_up("KVMGDB_ERR_NO_MEMORY", errno.ENOMEM),
        HostError,
        {"os_error": errno.ENOMEM},
    ),
    "KVMGDB_ERR_INVALID": (_invalid, InvalidRangeError, {}),
    "KVMGDB_ERR_NOT_MAPPED": (
        _not_mapped,
        MemoryFault,
        {"address": BASE + 0x1000, "level": 1, "entry": 0},
    ),
    "KVMGDB_ERR_NO_RAM": (_no_ram, NoRamError, {"address": 0x1234}),
    "KVMGDB_ERR_GONE": (_gone, TargetGoneError, {}),
    "KVMGDB_ERR_PERMISSION": (
        _made_up("KVMGDB_ERR_PERMISSION", errno.EACCES),
        AccessDeniedError,
        {},
    ),
    "KVMGDB_ERR_READ_ONLY": (_read_only, ReadOnlyMemoryError, {"address": 0x8010}),
    "KVMGDB_ERR_IO": (_io, HostError, {"os_error": errno.EIO}),
    "KVMGDB_ERR_NOT_FOUND": (_made_up("KVMGDB_ERR_NOT_FOUND", 0), NotFoundError, {}),
    "KVMGDB_ERR_MALFORMED": (_made_up("KVMGDB_ERR_MALFORMED", 0), GuestDataError, {}),
}


def test_every_status_has_a_case_and_an_exception() -> None:
    codes = _status_codes()
    assert set(CASES) == set(codes)
    assert set(native.ERRORS) == set(codes.values())
    assert len(codes) == len(set(codes.values()))


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_status_becomes_its_exception(name: str) -> None:
    run, expected, attributes = CASES[name]
    with pytest.raises(expected) as caught:
        run()
    assert type(caught.value) is expected
    assert str(caught.value)
    for attribute, value in attributes.items():
        assert getattr(caught.value, attribute) == value


def test_a_process_of_somebody_else_is_denied() -> None:
    if os.geteuid() != 0:
        with pytest.raises(AccessDeniedError):
            Memory(1)
        return
    pid = os.fork()
    if pid == 0:
        # As nobody: init's memory is not ours to see.
        code = 1
        try:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            Memory(1)
        except AccessDeniedError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_process_that_does_not_exist() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(TargetGoneError):
        Memory(pid)


@pytest.mark.parametrize("pid", [-1, 1 << 31, 1 << 70])
def test_what_is_no_process_id(pid: int) -> None:
    with pytest.raises(InvalidRangeError):
        Memory(pid)


@pytest.mark.parametrize("value", [-1, 1 << 64, 1 << 200])
def test_numbers_that_are_not_64_bit_are_errors_of_ours(value: int) -> None:
    with Guest() as guest:
        calls: list[Callable[[], object]] = [
            lambda: guest.memory.read(value, 1),
            lambda: guest.memory.write(value, b"x"),
            lambda: guest.memory.read_virtual(guest.paging, value, 1),
            lambda: guest.memory.write_virtual(guest.paging, value, b"x"),
            lambda: guest.memory.translate(guest.paging, value),
            lambda: guest.memory.frame_virtual(guest.paging, value, 1, True),
            lambda: guest.memory.next_extent(guest.paging, value, 0),
            lambda: guest.memory.search_virtual(guest.paging, 0, value, b"x", 1),
            lambda: guest.memory.add_file(value, 1, guest.fd),
            lambda: guest.memory.add_process(0, value, 0),
            lambda: guest.memory.add_callback(0, value, lambda gpa, length: b""),
            lambda: guest.memory.translate(Paging(value, 0, 0, 0), 0),
        ]
        for call in calls:
            with pytest.raises(InvalidRangeError):
                call()


@pytest.mark.parametrize("length", [-1, (1 << 30) + 1, 1 << 64])
def test_lengths_have_a_bound(length: int) -> None:
    with Guest() as guest:
        for call in (
            lambda: guest.memory.read(0, length),
            lambda: guest.memory.read_virtual(guest.paging, BASE, length),
            lambda: guest.memory.frame_virtual(guest.paging, BASE, length, False),
        ):
            with pytest.raises(InvalidRangeError):
                call()


def test_a_closed_memory_is_an_error_and_may_be_closed_again() -> None:
    memory = Memory()
    memory.close()
    memory.close()
    memory.clear()
    with pytest.raises(InvalidRangeError):
        memory.read(0, 1)
    with pytest.raises(InvalidRangeError):
        memory.translate(Paging(0, 0, 0, 0), 0)
    with pytest.raises(InvalidRangeError):
        memory.add_process(0, 1, 0)
