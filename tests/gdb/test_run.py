"""Stepping, vCPUs one by one, and interrupting a guest that runs."""

from __future__ import annotations

import re

from tests.support.gdb import GdbSession, gdb_batch
from tests.support.served import WatchedGuest
from tests.support.server import KvmgdbServer


def _disassemble(gdb: GdbSession, address: int, count: int) -> list[int]:
    text = gdb.cli(f"x/{count}i {address:#x}")
    return [int(word, 16) for word in re.findall(r"^(?:=>|  ) (0x[0-9a-f]+)", text, re.MULTILINE)]


def test_stepi_goes_from_instruction_to_instruction(
    connected: GdbSession, guest: WatchedGuest, hot: int
) -> None:
    gdb = connected
    addresses = _disassemble(gdb, hot, 3)
    gdb.cli(f"tbreak *{hot:#x}")
    stop = gdb.run_to_stop()
    for address in addresses[1:]:
        stop = gdb.run_to_stop("-exec-step-instruction")
        assert stop["reason"] == "end-stepping-range"
        assert gdb.integer("$pc") == address
        assert guest.register("RIP", int(stop["thread-id"]) - 1) == address


def test_stepi_with_a_breakpoint_on_the_next_instruction(connected: GdbSession, hot: int) -> None:
    gdb = connected
    following = _disassemble(gdb, hot, 2)[1]
    gdb.cli(f"tbreak *{hot:#x}")
    gdb.run_to_stop()
    gdb.cli(f"break *{following:#x}")
    gdb.run_to_stop("-exec-step-instruction")
    assert gdb.integer("$pc") == following
    # It has not run yet, and going on hits it at the next call, not here again.
    assert gdb.run_to_stop()["reason"] == "breakpoint-hit"
    assert gdb.integer("$pc") == following


def test_many_steps(connected: GdbSession, hot: int) -> None:
    gdb = connected
    gdb.cli(f"tbreak *{hot:#x}")
    gdb.run_to_stop()
    stop = gdb.run_to_stop('-interpreter-exec console "stepi 50"')
    assert stop["reason"] == "end-stepping-range"
    assert gdb.integer("$pc") != hot


def test_the_other_vcpu(connected: GdbSession, guest: WatchedGuest) -> None:
    gdb = connected
    gdb.cli("thread 2")
    assert gdb.integer("$rip") == guest.register("RIP", 1)
    assert gdb.integer("$gs_base") == int(
        re.findall(r"^GS =\w+ (\w+)", guest.hmp("info registers", 1), re.MULTILINE)[0], 16
    )
    gdb.cli("thread 1")
    assert gdb.integer("$rip") == guest.register("RIP", 0)


def test_one_vcpu_steps_and_the_other_stands(
    connected: GdbSession, guest: WatchedGuest, hot: int
) -> None:
    gdb = connected
    gdb.cli(f"tbreak *{hot:#x}")
    stop = gdb.run_to_stop()
    stepping = int(stop["thread-id"]) - 1
    gdb.cli("set scheduler-locking on")
    before = guest.hmp("info registers", 1 - stepping)
    assert gdb.run_to_stop("-exec-step-instruction")["thread-id"] == stop["thread-id"]
    assert gdb.integer("$pc") != hot
    assert guest.hmp("info registers", 1 - stepping) == before


def test_interrupt_a_running_guest(connected: GdbSession, guest: WatchedGuest) -> None:
    gdb = connected
    for _ in range(5):
        gdb.resume()
        assert guest.linux.makes_progress()
        stop = gdb.interrupt()
        assert stop["signal-name"] == "SIGINT"
        assert guest.status != "running"


def test_interrupt_right_after_continue(connected: GdbSession) -> None:
    for _ in range(10):
        connected.resume()
        assert connected.interrupt()["signal-name"] in ("SIGINT", "0")


def test_state_of_threads(gdb_path: str, guest: WatchedGuest, server: KvmgdbServer) -> None:
    output = gdb_batch(gdb_path, f"target remote {server.address}", "info threads")
    states = re.findall(r'"vCPU \d \[.+ pid \d+\]" +\((halted|running)\)', output.stdout)
    assert len(states) == 2, output.text


def test_step_flags_of_qemu(connected: GdbSession) -> None:
    def packet(payload: str) -> str:
        match = re.search(r'received: "(.*)"', connected.cli(f"maint packet {payload}"))
        assert match
        return match[1]

    assert packet("qqemu.sstepbits") == "ENABLE=1,NOIRQ=2,NOTIMER=4"
    assert packet("qqemu.sstep") == "0x7"
    assert packet("Qqemu.sstep=5") == "OK"
    assert packet("qqemu.sstep") == "0x5"
    assert packet("Qqemu.sstep=ff").startswith("E")
    assert packet("Qqemu.sstep=7") == "OK"
