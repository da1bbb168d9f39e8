"""Several debuggers on one guest: it runs only while all of them let it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gdb import GdbSession
from tests.support.polling import wait_for
from tests.support.rsp import RawClient, frame
from tests.support.served import WatchedGuest
from tests.support.server import KvmgdbServer


@pytest.fixture
def second(connected: GdbSession, gdb_path: str, server: KvmgdbServer) -> Iterator[GdbSession]:
    """Another GDB on the guest that ``connected`` holds."""
    with GdbSession(gdb_path) as session:
        session.connect(server.address)
        yield session


def _wait_running(guest: WatchedGuest) -> None:
    wait_for("the guest runs", lambda: guest.status == "running")


def test_both_see_the_same(connected: GdbSession, second: GdbSession, guest: WatchedGuest) -> None:
    for name in ("rip", "rsp", "cr3"):
        assert connected.integer(f"${name}") == second.integer(f"${name}")
    debuggers = second.cli("monitor debuggers")
    assert debuggers.count("holds the guest") == 2


def test_one_holds_and_the_other_waits(
    connected: GdbSession, second: GdbSession, guest: WatchedGuest
) -> None:
    connected.resume()
    wait_for(
        "the first lets go",
        lambda: "lets the guest run" in second.cli("monitor debuggers"),
    )
    assert "holds the guest" in second.cli("monitor debuggers")
    assert guest.status != "running"
    second.resume()
    _wait_running(guest)
    assert guest.linux.makes_progress()
    # One interrupts: it gets the guest to look at, and the other hears nothing.
    assert second.interrupt()["signal-name"] == "SIGINT"
    assert guest.status != "running"
    second.resume()
    _wait_running(guest)
    connected.interrupt()
    second.interrupt()


def test_one_that_waits_is_told_for_whom(
    connected: GdbSession, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    with RawClient(server.address) as waiting:
        assert waiting.request(b"?").startswith(b"T05")
        waiting.send(frame(b"vCont;c"))
        wait_for("the console text", lambda: waiting.is_silent(0.05) and waiting.console)
        waiting.send(b"\x03")
        assert waiting.receive().startswith(b"T02")
        assert b"the guest stays stopped: debugger 1 " in waiting.console
    assert guest.status != "running"


def test_a_waiting_debugger_can_be_interrupted(
    connected: GdbSession, second: GdbSession, guest: WatchedGuest
) -> None:
    connected.resume()
    assert connected.interrupt()["signal-name"] == "SIGINT"
    assert guest.status != "running"
    assert second.integer("$rip") == connected.integer("$rip")


def test_a_breakpoint_stops_its_owner_only(
    connected: GdbSession, second: GdbSession, guest: WatchedGuest, hot: int
) -> None:
    connected.cli(f"break *{hot:#x}")
    second.resume()
    stop = connected.run_to_stop()
    assert stop["reason"] == "breakpoint-hit"
    # The second is not told, and waits; the first goes on, and hits it again.
    for _ in range(3):
        assert connected.run_to_stop()["reason"] == "breakpoint-hit"
    assert "lets the guest run" in connected.cli("monitor debuggers")
    connected.cli("delete")
    connected.resume()
    _wait_running(guest)
    assert guest.linux.makes_progress()
    second.interrupt()
    connected.interrupt()


def test_both_have_a_breakpoint_at_one_place(
    connected: GdbSession, second: GdbSession, guest: WatchedGuest, hot: int
) -> None:
    connected.cli(f"break *{hot:#x}")
    second.cli(f"break *{hot:#x}")
    second.resume()
    for _ in range(2):
        assert connected.run_to_stop()["reason"] == "breakpoint-hit"
        assert second.wait_stop()["reason"] == "breakpoint-hit"
        second.resume()
    connected.cli("delete")
    connected.resume()
    assert second.wait_stop()["reason"] == "breakpoint-hit"
    assert second.run_to_stop()["reason"] == "breakpoint-hit"
    second.cli("delete")
    second.resume()
    _wait_running(guest)
    assert guest.linux.makes_progress()
    connected.interrupt()


def test_one_steps_while_the_other_waits(
    connected: GdbSession, second: GdbSession, hot: int
) -> None:
    second.resume()
    connected.cli(f"tbreak *{hot:#x}")
    connected.run_to_stop()
    for _ in range(3):
        before = connected.integer("$pc")
        assert connected.run_to_stop("-exec-step-instruction")["reason"] == "end-stepping-range"
        assert connected.integer("$pc") != before
    second.interrupt()
    assert second.integer("$pc") == connected.integer("$pc")


def test_one_is_killed(
    connected: GdbSession,
    second: GdbSession,
    guest: WatchedGuest,
    hot: int,
    server: KvmgdbServer,
) -> None:
    """Its breakpoints go with it, and so does its hold on the guest."""
    connected.cli(f"break *{hot:#x}")
    connected.cli(f"hbreak *{hot + 1:#x}")
    second.resume()
    connected.run_to_stop()
    connected.kill()
    server.wait_printed("debugger 1 .* is gone")
    _wait_running(guest)
    assert guest.linux.makes_progress()
    second.interrupt()
    assert second.cli("monitor debuggers").count("debugger") == 1


def test_one_is_killed_while_the_other_holds(
    connected: GdbSession,
    second: GdbSession,
    guest: WatchedGuest,
    hot: int,
    server: KvmgdbServer,
) -> None:
    connected.cli(f"break *{hot:#x}")
    connected.resume()
    connected.kill()
    server.wait_printed("debugger 1 .* is gone")
    assert guest.status != "running"
    assert second.integer("$rip") == guest.register("RIP", int(second.value("$_thread")) - 1)
    second.resume()
    _wait_running(guest)
    assert guest.linux.makes_progress()
    second.interrupt()


def test_one_detaches_the_other_goes_on(
    connected: GdbSession, second: GdbSession, guest: WatchedGuest
) -> None:
    connected.cli("detach")
    assert guest.status != "running"
    second.cli("stepi")
    second.cli("detach")
    guest.wait_given_back()


def test_disconnecting_another(
    connected: GdbSession, second: GdbSession, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    assert "debugger 1 " in second.cli("monitor disconnect 1")
    server.wait_printed("debugger 1 .* is gone")
    assert second.cli("monitor debuggers").count("debugger") == 1
    second.resume()
    _wait_running(guest)
    second.interrupt()
