"""Others do things to the machine through QEMU's own monitor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gdb import GdbSession
from tests.support.polling import wait_for
from tests.support.qemu import TCG, Qemu, qmp
from tests.support.require import requires_qemu
from tests.support.rsp import RawClient, frame
from tests.support.served import WatchedGuest
from tests.support.server import KvmgdbServer

pytestmark = requires_qemu


def test_stopped_while_gdb_waits(
    gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    gdb.connect(server.address)
    gdb.resume()
    wait_for("the guest runs", lambda: guest.status == "running")
    guest.qmp("stop")
    assert gdb.wait_stop()["signal-name"] == "SIGINT"
    assert gdb.integer("$rip") == guest.register("RIP", int(gdb.value("$_thread")) - 1)
    gdb.resume()
    wait_for("the guest runs", lambda: guest.status == "running")
    gdb.interrupt()
    gdb.cli("detach")


def test_resumed_while_gdb_holds_it(
    gdb: GdbSession, guest: WatchedGuest, hot: int, server: KvmgdbServer
) -> None:
    """What a debugger shows at its prompt must stay true: the guest is stopped again."""
    gdb.connect(server.address)
    guest.qmp("cont")
    wait_for("the guest stands again", lambda: guest.status != "running")
    gdb.cli("maintenance flush register-cache")
    assert gdb.integer("$rip") == guest.register("RIP", int(gdb.value("$_thread")) - 1)
    assert "resumed through QEMU's monitor and stopped again" in gdb.cli("monitor info")
    gdb.cli(f"break *{hot:#x}")
    assert gdb.run_to_stop()["reason"] == "breakpoint-hit"
    gdb.cli("detach")


def test_stopped_guest_is_given_back_stopped(guest: WatchedGuest, server: KvmgdbServer) -> None:
    """Its owner has stopped it: a debugger that comes and goes changes nothing."""
    guest.qmp("stop")
    try:
        with RawClient(server.address) as client:
            assert client.request(b"?").startswith(b"T05")
            assert client.request(b"D") == b"OK"
        wait_for("the stub is gone", lambda: not guest.has_stub)
        assert guest.status == "paused"
    finally:
        guest.qmp("cont")


@pytest.fixture
def watched_firmware(tmp_path: Path) -> Iterator[tuple[Qemu, Path]]:
    """A machine without a disk and a second monitor socket."""
    monitor = tmp_path / "qmp2"
    second = ("-qmp", f"unix:{monitor},server=on,wait=off")
    with Qemu(*TCG, "-m", "32M", "-no-shutdown", *second) as qemu:
        yield qemu, monitor


def test_reset_while_the_guest_runs(watched_firmware: tuple[Qemu, Path]) -> None:
    qemu, monitor = watched_firmware
    with KvmgdbServer(str(qemu.pid)) as server, RawClient(server.address) as client:
        client.request(b"?")
        assert client.request(b"Z1,ffff0,1") == b"OK"
        client.send(frame(b"vCont;c"))
        wait_for("it runs", lambda: qmp(monitor, "query-status")["running"])
        qmp(monitor, "system_reset")
        # The reset vector is at 0xfffffff0, and its copy below 1 MiB is where it jumps.
        assert client.is_silent(0.3)
        client.send(b"\x03")
        assert client.receive().startswith(b"T02")
        assert len(client.request(b"g")) > 0
        assert not client.request(b"mffff0,10").startswith(b"E")


def test_reset_while_a_debugger_holds_it(watched_firmware: tuple[Qemu, Path]) -> None:
    qemu, monitor = watched_firmware
    with KvmgdbServer(str(qemu.pid)) as server, RawClient(server.address) as client:
        client.request(b"?")
        qmp(monitor, "system_reset")

        def instruction_pointer() -> bytes:
            return client.request(b"p10")

        wait_for(
            "the registers are those after a reset",
            lambda: instruction_pointer() == b"f0ff000000000000",
        )
        assert client.request(b"mfffffff0,1") == b"ea"


def test_power_button_of_a_machine_that_stays(watched_firmware: tuple[Qemu, Path]) -> None:
    """With -no-shutdown QEMU stays after a shutdown; a debugger that waits is told why."""
    qemu, monitor = watched_firmware
    with KvmgdbServer(str(qemu.pid)) as server, RawClient(server.address) as client:
        client.request(b"?")
        client.send(frame(b"vCont;c"))
        wait_for("it runs", lambda: qmp(monitor, "query-status")["running"])
        qmp(monitor, "human-monitor-command", **{"command-line": "o /w 0x604 0x2000"})
        reply = client.receive()
        assert reply.startswith(b"T03")
        assert b"shut down" in client.console
        assert client.request(b"?").startswith(b"T05")
