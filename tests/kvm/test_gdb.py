"""Real GDBs on guests under KVM, in VMMs that were started with no debugging
option: what a user does first."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from kvmgdb.cli.launch import kvm_unusable
from kvmgdb.machine.agent import agent_path
from tests.kvm.guests import image, qemu_guest
from tests.support.gdb import GdbSession, gdb_batch
from tests.support.require import requires
from tests.support.server import KvmgdbServer

pytestmark = requires("kvm", "qemu", "cc")

_NOBODY = 65534


@pytest.fixture(scope="module")
def qemu() -> Iterator[int]:
    with qemu_guest("kvmgdb-kvm", "chain") as pid:
        yield pid


def _progress(gdb: GdbSession, vcpu: int = 0) -> int:
    where = image("chain").symbols["progress"] + 8 * vcpu
    return gdb.integer(f"*(unsigned long *) {where:#x}")


def _session(gdb: GdbSession, server: KvmgdbServer, watches: bool = True) -> None:
    """Everything that a debugger does first, then leaves; the guest goes on."""
    symbols = image("chain").symbols
    leaf, watched = symbols["chain_leaf"], symbols["chain_watched"]
    gdb.connect(server.address)
    threads = gdb.cli("info threads")
    assert '"vCPU 0"' in threads
    assert '"vCPU 1"' in threads
    assert gdb.integer("$cr0") & 0x80000001 == 0x80000001
    assert gdb.integer("$efer") & 0x500 == 0x500
    code = gdb.cli(f"x/4xb {leaf:#x}")

    gdb.cli(f"break *{leaf:#x}")
    for _ in range(3):
        assert gdb.run_to_stop()["reason"] == "breakpoint-hit"
        assert gdb.integer("$pc") == leaf
        # What we planted is invisible.
        assert gdb.cli(f"x/4xb {leaf:#x}") == code
    gdb.cli("stepi")
    assert gdb.integer("$pc") == leaf + 1
    gdb.cli("delete")

    # chain_b of vCPU 0 is about to write what is watched next: where a watchpoint
    # has to be stepped for, it must not be far.
    writer = symbols["chain_b"]
    gdb.cli(f"hbreak *{writer:#x}")
    while (stop := gdb.run_to_stop())["thread-id"] != "1":
        assert stop["reason"] == "breakpoint-hit"
        assert gdb.integer("$pc") == writer
    gdb.cli("delete")

    if watches:
        gdb.cli(f"watch *(unsigned long *) {watched:#x}")
        before = gdb.integer(f"*(unsigned long *) {watched:#x}")
        assert gdb.run_to_stop()["reason"] == "watchpoint-trigger"
        assert gdb.integer(f"*(unsigned long *) {watched:#x}") != before
        gdb.cli("delete")

    counter = _progress(gdb)
    gdb.resume()
    gdb.interrupt()
    r15 = gdb.integer("$r15")
    gdb.cli("set $r15 = 0x123456789abcdef0")
    assert gdb.integer("$r15") == 0x123456789ABCDEF0
    gdb.cli(f"set $r15 = {r15:#x}")
    gdb.cli("detach")
    gdb.connect(server.address)
    gdb.resume()
    gdb.interrupt()
    assert _progress(gdb) >= counter
    assert gdb.cli(f"x/4xb {leaf:#x}") == code
    assert gdb.integer("$dr7") & 0xFF == 0
    gdb.cli("detach")


def test_qemu(gdb: GdbSession, qemu: int) -> None:
    with KvmgdbServer(str(qemu)) as server:
        _session(gdb, server)


def test_watching_for_reads(gdb_path: str, qemu: int) -> None:
    """By debug registers; a KVM that interprets guest code has none, and then the
    user is told why, and may go on."""
    watched = image("chain").symbols["chain_watched"]
    with KvmgdbServer(str(qemu)) as server:
        said = gdb_batch(
            gdb_path,
            f"target remote {server.address}",
            f"awatch *(unsigned long *) {watched:#x}",
            "continue",
            "delete",
            "monitor info",
            "stepi",
            "detach",
        ).text
    if kvm_unusable():
        assert "Could not insert hardware watchpoint 1" in said
        assert "cannot watch for reads: watch for writes" in said
    else:
        assert re.search(r"Hardware access .* 1: .*\n\nValue = ", said), said
    assert "detached" in said


def test_qemu_by_name_and_q35_with_shared_memory(gdb: GdbSession) -> None:
    shared = ("-object", "memory-backend-memfd,id=ram,size=64M,share=on")
    machine = ("-machine", "q35,memory-backend=ram")
    with (
        qemu_guest("kvmgdb-q35", "chain", [*shared, *machine]),
        KvmgdbServer("kvmgdb-q35") as server,
    ):
        _session(gdb, server)


def test_ordinary_user(gdb: GdbSession) -> None:
    """A user who owns the VMM, and has no other right."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    user = ("setpriv", "--reuid", str(_NOBODY), "--clear-groups")
    reach = subprocess.run([*user, "sh", "-c", 'test -x "$0"', str(agent_path())], check=False)
    if reach.returncode != 0:
        pytest.skip(f"an ordinary user cannot reach {agent_path()}")
    with (
        qemu_guest("kvmgdb-nobody", "chain", as_user=_NOBODY) as pid,
        KvmgdbServer(str(pid), prefix=user) as server,
    ):
        # A KVM that interprets guest code knows no watchpoints, and what replaces
        # them needs perf events.
        _session(gdb, server, watches=not kvm_unusable())


def test_own_vmm_from_its_first_instruction(gdb: GdbSession) -> None:
    chain = image("chain")
    arguments = [str(chain.elf), "--accel", "kvm", "--cpus", "2", "--memory", "64M", "-S"]
    with KvmgdbServer(*arguments, verb="run") as server:
        gdb.connect(server.address)
        entry = chain.symbols["pvh_entry"] if "pvh_entry" in chain.symbols else gdb.integer("$pc")
        assert gdb.integer("$pc") == entry
        assert gdb.integer("$cr0") & 0x80000001 == 1  # protected mode, no paging
        first = gdb.integer("$pc")
        gdb.cli("stepi")
        assert first < gdb.integer("$pc") <= first + 15
        gdb.cli(f"hbreak *{chain.symbols['chain_leaf']:#x}")
        assert gdb.run_to_stop()["reason"] == "breakpoint-hit"
        gdb.cli("delete")
        assert "first instruction" in gdb.cli("monitor reset")
        gdb.cli("maintenance flush register-cache")
        assert gdb.integer("$pc") == first
        gdb.cli("detach")
        _session(gdb, server)


def test_triple_fault_keeps_the_machine(gdb: GdbSession) -> None:
    arguments = [str(image("triple").elf), "--accel", "kvm", "--memory", "64M", "-S"]
    with KvmgdbServer(*arguments, verb="run") as server:
        gdb.connect(server.address)
        first = gdb.integer("$pc")
        stop = gdb.run_to_stop()
        assert stop["signal-name"] == "SIGQUIT"
        assert gdb.integer("$rsp") != 0
        assert gdb.integer("$idtr_limit") == 0
        # It cannot go on, and says so instead of hanging.
        gdb.run_to_stop()
        gdb.cli("monitor reset")
        gdb.cli("maintenance flush register-cache")
        assert gdb.integer("$pc") == first
        gdb.cli("detach")
        assert "triple fault" in server.printed()
