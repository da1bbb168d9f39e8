"""Connecting and leaving, with the GDBs that users have."""

from __future__ import annotations

import re

from tests.support.gdb import GdbSession, gdb_batch
from tests.support.polling import wait_for
from tests.support.served import WatchedGuest
from tests.support.server import KvmgdbServer


def test_connect_shows_two_vcpus(gdb_path: str, guest: WatchedGuest, server: KvmgdbServer) -> None:
    output = gdb_batch(
        gdb_path, f"target remote {server.address}", "info threads", "info inferiors", "detach"
    )
    assert re.search(r'\* 1 +Thread 1\.1 "vCPU 0 \[\w.* pid \d+\]"', output.stdout), output.text
    assert re.search(r'  2 +Thread 1\.2 "vCPU 1 \[\w.* pid \d+\]"', output.stdout), output.text
    assert output.stdout.count("vCPU") == 2 + output.stdout.count("[vCPU"), output.text
    assert "detached]" in output.stdout
    assert "warning" not in output.text.lower().replace("warning: file transfers from", "")
    assert output.status == 0


def test_guest_runs_until_gdb_comes_and_after_it_left(
    gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    assert not guest.has_stub
    assert guest.linux.makes_progress()
    gdb.connect(server.address)
    assert guest.status != "running"
    assert guest.has_stub
    assert not guest.linux.makes_progress(seconds=0.5)
    gdb.cli("detach")
    guest.wait_given_back()


def test_quit_gives_the_guest_back(
    gdb_path: str, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    gdb_batch(gdb_path, f"target remote {server.address}", "print $pc")
    server.wait_printed("debugger 1 .* detached")
    guest.wait_given_back()


def test_killed_gdb_gives_the_guest_back(
    gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    hot = guest.symbol("__x64_sys_getppid")
    gdb.connect(server.address)
    gdb.cli(f"break *{hot:#x}")
    assert gdb.run_to_stop()["reason"] == "breakpoint-hit"
    gdb.kill()
    server.wait_printed("debugger 1 .* is gone")
    guest.wait_given_back()


def test_disconnect_and_connect_again(
    gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    for _ in range(3):
        gdb.connect(server.address)
        assert gdb.integer("$cr3") & ~0x1FFF
        gdb.cli("disconnect")
        wait_for("the guest runs", lambda: guest.status == "running")


def test_detach_while_the_guest_runs(
    gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    gdb.connect(server.address)
    gdb.resume()
    assert guest.linux.makes_progress()
    gdb.interrupt()
    gdb.cli("detach")
    guest.wait_given_back()
