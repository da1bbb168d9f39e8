"""Extended-remote mode: attaching again, and what `kill` may do."""

from __future__ import annotations

import re

import pytest

from tests.support.gdb import GdbError, GdbSession, gdb_batch
from tests.support.polling import wait_for
from tests.support.served import WatchedGuest
from tests.support.server import KvmgdbServer


def test_detach_and_attach_again(
    gdb: GdbSession, guest: WatchedGuest, hot: int, server: KvmgdbServer
) -> None:
    gdb.cli(f"target extended-remote {server.address}")
    for _ in range(2):
        assert gdb.integer("$cr3") == guest.register("CR3")
        gdb.cli(f"break *{hot:#x}")
        gdb.run_to_stop()
        gdb.cli("detach")
        guest.wait_given_back()
        gdb.cli("delete")
        gdb.cli("attach 1")
        wait_for("the guest stands", lambda: guest.status != "running")
        assert gdb.cli("info threads").count("vCPU") == 2
    gdb.cli("detach")


def test_attach_to_a_process_that_is_not_there(gdb_path: str, server: KvmgdbServer) -> None:
    output = gdb_batch(
        gdb_path, f"target extended-remote {server.address}", "detach", "attach 7", "info threads"
    )
    assert "Attaching to process 7 failed" in output.text, output.text
    assert "No threads." in output.stdout


def test_kill_is_refused_and_the_guest_goes_on(
    gdb_path: str, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    for mode in ("remote", "extended-remote"):
        gdb_batch(gdb_path, f"target {mode} {server.address}", "kill")
        guest.wait_given_back()


def test_kill_says_why_not(gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer) -> None:
    gdb.cli(f"target extended-remote {server.address}")
    with pytest.raises(GdbError, match=r"[Kk]ill"):
        gdb.cli("kill")
    assert guest.linux.qemu.running
    assert gdb.integer("$cr3") == guest.register("CR3")


def test_run_is_refused(gdb_path: str, guest: WatchedGuest, server: KvmgdbServer) -> None:
    output = gdb_batch(
        gdb_path, f"target extended-remote {server.address}", "detach", "run", "info threads"
    )
    assert re.search(r"on the remote target failed|is not started by its debugger", output.text), (
        output.text
    )
    guest.wait_given_back()
