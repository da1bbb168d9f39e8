"""Fixtures: a paused machine, and debuggers without sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kvmgdb.machine.qemu import QemuMachine
from kvmgdb.machine.qemu_process import QemuProcess, read_qemu_process
from tests.machine.rom_guest import RomGuest
from tests.rsp.wire import Client, Rig
from tests.support.require import demand

GDB_FEATURES = ("multiprocess", "swbreak", "hwbreak", "error-message")

NewClient = Callable[..., Client]


def process_of(guest: RomGuest) -> QemuProcess:
    process = read_qemu_process(guest.pid)
    assert process is not None
    return process


@pytest.fixture(scope="module")
def rom_guest() -> Iterator[RomGuest]:
    """A guest that the tests of a module share: it stands in 64-bit mode where one
    of them left it."""
    demand(["qemu", "cc"])
    with RomGuest() as guest:
        yield guest


@pytest.fixture
def rig(rom_guest: RomGuest) -> Iterator[Rig]:
    """A debuggee that opens the guest's machine for its first debugger."""
    process = process_of(rom_guest)
    rig = Rig(lambda: QemuMachine.open_process(process))
    yield rig
    rig.close()


@pytest.fixture
def new_client(rig: Rig) -> NewClient:
    """Makes debuggers that announce the given features."""
    return rig.client


@pytest.fixture
def client(rig: Rig, rom_guest: RomGuest) -> Client:
    """A debugger like GDB; vCPU 0 stands at ``work`` in 64-bit mode."""
    client = rig.client(*GDB_FEATURES)
    run_to(client, rom_guest.symbol("work"))
    return client


def run_to(client: Client, address: int) -> None:
    """Lets vCPU 0, and no other, run to an instruction."""
    where = b"%x,1" % address
    first = b"p1.1" if "multiprocess" in client.session.features else b"1"
    assert client.ask(b"Z1," + where) == b"OK"
    assert b"thread:%b;" % first in client.ask(b"vCont;c:" + first)
    assert client.ask(b"z1," + where) == b"OK"
    assert client.ask(b"Hg" + first) == b"OK"
