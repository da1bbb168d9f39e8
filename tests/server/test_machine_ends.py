"""QEMU that ends under us, idle or with debuggers at it."""

from __future__ import annotations

import signal

import pytest

from tests.server.conftest import FIRMWARE
from tests.support.gdb import GdbSession
from tests.support.polling import wait_for
from tests.support.qemu import TCG, Qemu
from tests.support.rsp import RawClient, frame
from tests.support.server import KvmgdbServer


def _end(firmware: Qemu, how: str) -> None:
    if how == "killed":
        firmware.process.kill()
    else:
        firmware.process.send_signal(signal.SIGTERM)  # QEMU quits
    firmware.process.wait(60)


def _assert_alive_and_clear(server: KvmgdbServer) -> None:
    """The server tells a new client what happened, and that is all."""
    with RawClient(server.address) as client:
        assert client.request(b"qSupported:error-message+").startswith(b"E.")
        assert client.request(b"?") == b"W00"
        assert client.request(b"g").startswith(b"E")
        assert client.request(b"qfThreadInfo") == b"l"
    assert server.running


@pytest.mark.parametrize("how", ["killed", "quit"])
def test_while_nobody_is_connected(firmware: Qemu, how: str) -> None:
    with KvmgdbServer(str(firmware.pid)) as server:
        _end(firmware, how)
        _assert_alive_and_clear(server)
        server.wait_printed("cannot attach: .*(no (QEMU|process) with PID|exited)")


@pytest.mark.parametrize("how", ["killed", "quit"])
def test_while_it_is_stopped(firmware: Qemu, how: str) -> None:
    with KvmgdbServer(FIRMWARE) as server, RawClient(server.address) as client:
        assert client.request(b"?").startswith(b"T05")
        _end(firmware, how)
        server.wait_printed("the virtual machine is gone: ")
        assert client.request(b"m0,4").startswith(b"E")
        assert client.request(b"?") == b"W00"
        assert client.request(b"vCont;c") == b"W00"
        _assert_alive_and_clear(server)


@pytest.mark.parametrize("how", ["killed", "quit"])
def test_while_gdb_waits(gdb: GdbSession, firmware: Qemu, how: str) -> None:
    with KvmgdbServer(FIRMWARE) as server:
        gdb.connect(server.address)
        gdb.resume()
        wait_for("it runs", lambda: "lets the guest run" in _debuggers(server))
        _end(firmware, how)
        assert gdb.wait_stop()["reason"].startswith("exited")
        server.wait_printed("the virtual machine is gone: ")
        _assert_alive_and_clear(server)


def _debuggers(server: KvmgdbServer) -> str:
    """Who is connected; asks as one more debugger, which leaves again."""
    with RawClient(server.address) as client:
        client.request(b"qSupported")
        return client.monitor("debuggers")


def test_two_debuggers_are_told(firmware: Qemu) -> None:
    with (
        KvmgdbServer(FIRMWARE) as server,
        RawClient(server.address) as waiting,
        RawClient(server.address) as holding,
    ):
        for client in (waiting, holding):
            client.request(b"?")
        waiting.send(frame(b"vCont;c"))
        wait_for("it waits", lambda: "lets the guest run" in holding.monitor("debuggers"))
        _end(firmware, "killed")
        assert waiting.receive() == b"W00"
        assert holding.request(b"vCont;c") == b"W00"


def test_a_machine_of_that_name_comes_back(gdb: GdbSession, firmware: Qemu) -> None:
    with KvmgdbServer(FIRMWARE) as server:
        gdb.connect(server.address)
        gdb.resume()
        _end(firmware, "killed")
        gdb.wait_stop()
        with Qemu(*TCG, "-m", "48M", "-name", FIRMWARE, "-S") as again:
            gdb.connect(server.address)
            assert gdb.integer("$rip") == 0xFFF0
            assert f"{again.pid}" in gdb.cli("monitor info")
            gdb.cli("detach")


def test_guest_that_shuts_down(firmware: Qemu) -> None:
    """QEMU ends with its guest; a debugger that waits is told."""
    with KvmgdbServer(FIRMWARE) as server, RawClient(server.address) as client:
        client.request(b"?")
        client.send(frame(b"vCont;c"))
        # The monitor is the server's: a second way in is QEMU's signal handler,
        # which asks for a shutdown as the guest would.
        firmware.process.send_signal(signal.SIGTERM)
        assert client.receive() == b"W00"
        server.wait_printed("the virtual machine is gone: .*(signal|shutdown|ended)")
