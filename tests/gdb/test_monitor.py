"""``monitor ...`` as GDB's user sees it, and the commands of gdb-scripts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.gdb import GdbError, GdbSession, gdb_batch
from tests.support.served import WatchedGuest
from tests.support.server import ROOT, KvmgdbServer


def test_what_it_tells(gdb_path: str, guest: WatchedGuest, server: KvmgdbServer) -> None:
    banner = guest.symbol("linux_banner")
    gpa = int(guest.hmp(f"gva2gpa {banner:#x}").split()[1], 16)
    output = gdb_batch(
        gdb_path,
        f"target remote {server.address}",
        *("monitor help", "monitor info", "monitor info memory", "monitor info vcpus"),
        *("monitor debuggers", f"monitor translate {banner:#x}", "monitor info status"),
        *("monitor no-such-command", "monitor translate 0x10", "monitor translate nonsense"),
        *("monitor info no-such-topic", 'monitor "', "monitor disconnect 99", "monitor"),
    )
    text = output.text
    for command in ("info", "translate", "debuggers", "disconnect", "reset", "vmm", "quit"):
        assert re.search(rf"^{command}\b.*  \w", text, re.MULTILINE), command
    assert re.search(rf"^machine +{guest.name}$", text, re.MULTILINE)
    assert re.search(rf"^pid +{guest.pid}$", text, re.MULTILINE)
    assert re.search(r"^accelerator +tcg$", text, re.MULTILINE)
    assert re.search(r"^0x000000100000-0x00000fffffff +255 MiB  ram", text, re.MULTILINE)
    assert len(re.findall(r"^[* ] vCPU \d  (?:halted|running) +4-level paging", text, re.M)) == 2
    assert re.search(r"^\* debugger 1 .*holds the guest", text, re.MULTILINE)
    assert f"GVA {banner:#x} -> GPA {gpa:#x}" in text
    assert "VM status: paused" in text
    assert "kvmgdb: unknown command: 'no-such-command'" in text
    assert "0x10 is not mapped on vCPU 0" in text
    assert "kvmgdb: 'nonsense' is not an address" in text
    assert "no other debugger 99" in text
    assert "Protocol error" not in text


def test_translate_follows_the_selected_vcpu(
    connected: GdbSession, guest: WatchedGuest, hot: int
) -> None:
    """User space is mapped differently on each vCPU."""
    gdb = connected
    gdb.cli(f"source {ROOT}/gdb-scripts/kvmgdb-gdb.py")
    for vcpu in (1, 0, 1):
        gdb.cli(f"thread {vcpu + 1}")
        assert f"vCPU {vcpu}: GVA " in gdb.cli("kvm translate $idtr_base")
    for vcpu in (0, 1):
        text = gdb.cli(f"monitor translate {gdb.integer('$idtr_base'):#x} {vcpu}")
        assert f"vCPU {vcpu}: GVA " in text
    assert "'2' is not a vCPU: they are 0 to 1" in gdb.cli("monitor translate 0 2")
    # What GDB asks for next is what the server takes for selected.
    gdb.cli("maintenance flush register-cache")
    gdb.integer("$cr3")
    assert re.search(r"^\* vCPU 1", gdb.cli("monitor info vcpus"), re.MULTILINE)


def test_quit_ends_the_server_and_gives_the_guest_back(
    gdb_path: str, guest: WatchedGuest, hot: int, server: KvmgdbServer
) -> None:
    output = gdb_batch(
        gdb_path, f"target remote {server.address}", f"hbreak *{hot:#x}", "monitor quit"
    )
    assert "kvmgdb ends; the virtual machine goes on" in output.text
    assert server.wait() == 0
    guest.wait_given_back()


def test_kvm_commands(connected: GdbSession, guest: WatchedGuest, hot: int, tmp_path: Path) -> None:
    gdb = connected
    gdb.cli(f"hbreak *{hot:#x}")
    gdb.run_to_stop()
    thread = gdb.value("$_thread")
    gdb.cli(f"source {ROOT}/gdb-scripts/kvmgdb-gdb.py")
    assert "kvm translate" in gdb.cli("kvm")
    assert guest.name in gdb.cli("kvm info")
    translated = gdb.cli("kvm translate $pc")
    assert f"GVA {hot:#x} -> GPA {guest.hmp(f'gva2gpa {hot:#x}').split()[1]}" in translated
    vcpus = gdb.cli("kvm vcpus")
    for vcpu in (0, 1):
        where = guest.register("RIP", vcpu)
        assert re.search(rf"^vCPU {vcpu} \[.* pid \d+\]: rip {where:#x} ", vcpus, re.M), vcpus
    assert gdb.value("$_thread") == thread
    assert len(gdb.cli("kvm idt").splitlines()) > 30
    assert re.match(r" 14  0xffffffff\w+ ", gdb.cli("kvm idt 14"))
    with pytest.raises(GdbError, match="there is no vector 999"):
        gdb.cli("kvm idt 999")
