"""Breakpoints and watchpoints in the running kernel."""

from __future__ import annotations

import re

import pytest

from tests.support.gdb import GdbSession, gdb_batch
from tests.support.served import WatchedGuest
from tests.support.server import KvmgdbServer


def test_breakpoint_is_hit_again_and_again(
    connected: GdbSession, guest: WatchedGuest, hot: int
) -> None:
    gdb = connected
    code = guest.memory(hot, 16)
    gdb.cli(f"break *{hot:#x}")
    for _ in range(3):
        stop = gdb.run_to_stop()
        assert stop["reason"] == "breakpoint-hit"
        vcpu = int(stop["thread-id"]) - 1
        assert gdb.integer("$pc") == hot == guest.register("RIP", vcpu)
        # The breakpoint is inserted while the guest runs, and nobody reads it.
        assert gdb.integer(f"*(unsigned long *) {hot:#x}") == int.from_bytes(code[:8], "little")
        assert guest.memory(hot, 16) == code
    gdb.cli("delete")
    gdb.resume()
    assert guest.linux.makes_progress()
    gdb.interrupt()


def test_breakpoint_at_an_interrupt_gate(connected: GdbSession, guest: WatchedGuest) -> None:
    """As somebody does who has no symbols: the timer's gate in the IDT."""
    gdb = connected
    gate = gdb.integer("$idtr_base") + 16 * 0xEC
    low = gdb.integer(f"*(unsigned long *) {gate:#x}")
    high = gdb.integer(f"*(unsigned int *) {gate + 8:#x}")
    entry = high << 32 | low >> 32 & 0xFFFF0000 | low & 0xFFFF
    gdb.cli(f"tbreak *{entry:#x}")
    assert gdb.run_to_stop()["reason"] == "breakpoint-hit"
    assert gdb.integer("$pc") == entry
    # The processor pushed five words, aligned to 16 bytes before that.
    assert gdb.integer("$rsp") % 16 == 8
    assert guest.register("RFL", int(gdb.value("$_thread")) - 1) & 0x200 == 0


def test_hardware_breakpoint(connected: GdbSession, hot: int) -> None:
    gdb = connected
    gdb.cli(f"hbreak *{hot:#x}")
    for _ in range(2):
        assert gdb.run_to_stop()["reason"] == "breakpoint-hit"
        assert gdb.integer("$pc") == hot


def test_breakpoint_with_a_condition(connected: GdbSession, hot: int) -> None:
    gdb = connected
    gdb.cli(f"break *{hot:#x} if $cs == 0x10 && $_thread == 2")
    gdb.run_to_stop()
    assert gdb.value("$_thread") == "2"
    gdb.cli("delete")
    # Never true: GDB goes on by itself, thousands of times, until it is interrupted.
    gdb.cli(f"break *{hot:#x} if $cs == 0x33")
    gdb.resume()
    assert gdb.interrupt()["reason"] == "signal-received"


def test_ignore_count(gdb_path: str, guest: WatchedGuest, server: KvmgdbServer, hot: int) -> None:
    output = gdb_batch(
        gdb_path,
        f"target remote {server.address}",
        f"break *{hot:#x}",
        "ignore 1 20",
        "continue",
        "info breakpoints",
        "detach",
    )
    assert "breakpoint already hit 21 times" in output.stdout, output.text


def test_watchpoint_on_jiffies(connected: GdbSession, guest: WatchedGuest) -> None:
    gdb = connected
    gdb.resume()
    jiffies = guest.symbol("jiffies_64")
    gdb.interrupt()
    before = gdb.integer(f"*(unsigned long *) {jiffies:#x}")
    gdb.cli(f"watch *(unsigned long *) {jiffies:#x}")
    for _ in range(2):
        stop = gdb.run_to_stop()
        assert stop["reason"] == "watchpoint-trigger"
        # One write may account for several ticks that a busy host made late.
        new = int(stop["value"]["new"])
        assert int(stop["value"]["old"]) == before < new < before + 100_000
        assert gdb.integer(f"*(unsigned long *) {jiffies:#x}") == new
        before = new


@pytest.mark.parametrize(
    ("command", "reason"),
    [("rwatch", "read-watchpoint-trigger"), ("awatch", "access-watchpoint-trigger")],
)
def test_watchpoint_on_reads(
    connected: GdbSession, guest: WatchedGuest, command: str, reason: str
) -> None:
    gdb = connected
    gdb.resume()
    jiffies = guest.symbol("jiffies_64")
    gdb.interrupt()
    gdb.cli(f"{command} *(unsigned long *) {jiffies:#x}")
    assert gdb.run_to_stop()["reason"] == reason
    assert gdb.run_to_stop()["reason"] == reason


def test_nothing_is_left_after_a_detach(
    connected: GdbSession, guest: WatchedGuest, hot: int
) -> None:
    """The guest runs through all of them many times in a second."""
    gdb = connected
    gdb.cli(f"break *{hot:#x}")
    gdb.cli(f"hbreak *{hot + 4:#x}")
    gdb.cli(f"watch *(unsigned long *) {hot & -4096:#x}")
    gdb.run_to_stop()
    gdb.cli("detach")
    guest.wait_given_back()


def test_nothing_is_left_after_a_delete(connected: GdbSession, hot: int) -> None:
    gdb = connected
    gdb.cli(f"break *{hot:#x}")
    gdb.cli(f"break *{hot:#x}")
    gdb.cli(f"hbreak *{hot:#x}")
    gdb.run_to_stop()
    gdb.cli("delete 1 3")
    assert gdb.run_to_stop()["reason"] == "breakpoint-hit"
    gdb.cli("delete")
    gdb.resume()
    assert gdb.interrupt()["reason"] == "signal-received"


def test_breakpoint_where_nothing_is_mapped(gdb_path: str, server: KvmgdbServer) -> None:
    """GDB, or the target, says so; or the breakpoint is there and is never hit."""
    output = gdb_batch(
        gdb_path, f"target remote {server.address}", "break *0x10", "stepi", "info threads"
    )
    assert re.search(r'Thread 1\.1 "vCPU 0 ', output.stdout), output.text
