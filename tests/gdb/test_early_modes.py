"""A machine before any operating system: real mode, 32-bit code, SeaBIOS."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.gdb import GdbSession, gdb_batch
from tests.support.polling import wait_for
from tests.support.qemu import TCG, Qemu
from tests.support.require import requires_qemu
from tests.support.served import has_stub
from tests.support.server import KvmgdbServer

pytestmark = requires_qemu


@pytest.fixture
def fresh() -> Iterator[Qemu]:
    """A machine that has not run yet. ``hmp`` works while no debugger is attached."""
    with Qemu(*TCG, "-m", "64M", "-smp", "2", "-S") as qemu:
        yield qemu


@pytest.fixture
def fresh_server(fresh: Qemu) -> Iterator[KvmgdbServer]:
    with KvmgdbServer(f"qmp:{fresh.qmp_socket}") as server:
        yield server


def test_reset_vector(gdb: GdbSession, fresh: Qemu, fresh_server: KvmgdbServer) -> None:
    rom = re.findall(r"0x[0-9a-f]{2}\b", fresh.hmp("xp/16xb 0xfffffff0"))
    text = gdb.connect(fresh_server.address)
    assert "too long" not in text
    assert gdb.integer("$rip") == 0xFFF0
    assert gdb.integer("$cs") == 0xF000
    assert gdb.integer("$cs_base") == 0xFFFF0000
    assert gdb.integer("$cs_limit") == 0xFFFF
    assert gdb.integer("$idtr_limit") == 0xFFFF
    assert "[ ET NW CD ]" in gdb.cli("info registers cr0")
    assert gdb.cli("info threads").count("vCPU") == 2
    shown = re.findall(r"0x[0-9a-f]{2}\b", gdb.cli("x/16xb 0xfffffff0"))
    assert shown == rom
    # The reset vector is a far jump.
    assert rom[0] == "0xea"
    assert "no paging" in gdb.cli("monitor info vcpus")


def test_steps_from_the_reset_vector(gdb: GdbSession, fresh_server: KvmgdbServer) -> None:
    gdb.connect(fresh_server.address)
    gdb.cli("stepi")
    gdb.wait_stop()
    assert (gdb.integer("$cs"), gdb.integer("$cs_base")) == (0xF000, 0xF0000)
    assert gdb.integer("$rip") == 0xE05B


def test_a_paused_machine_stays_paused(
    gdb_path: str, fresh: Qemu, fresh_server: KvmgdbServer
) -> None:
    for _ in range(2):
        output = gdb_batch(gdb_path, f"target remote {fresh_server.address}", "stepi", "detach")
        assert "detached]" in output.stdout
        wait_for("the stub is gone", lambda: not has_stub(fresh.qmp))
        assert not fresh.qmp("query-status")["running"]


def test_into_protected_mode_and_back_to_reset(
    gdb: GdbSession, fresh: Qemu, fresh_server: KvmgdbServer
) -> None:
    """SeaBIOS runs its initialisation as 32-bit code without paging."""
    gdb.connect(fresh_server.address)
    for _ in range(400):
        gdb.run_to_stop("-exec-step-instruction")
        if gdb.cli("info registers cr0").find(" PE ") > 0 and gdb.integer("$cs") == 8:
            break
    assert gdb.integer("$cs") == 8
    assert gdb.integer("$cs_limit") == 0xFFFFFFFF
    pc = gdb.integer("$pc")
    first = gdb.cli(f"x/16xb {pc:#x}")
    vmm = gdb.cli(f"monitor vmm xp/16xb {pc:#x}")
    assert re.findall(r"0x\w\w\b", first) == re.findall(r"0x\w\w\b", vmm)
    gdb.cli(f"tbreak *{pc:#x}")
    assert "its first instruction" in gdb.cli("monitor reset")
    gdb.cli("maintenance flush register-cache")
    assert gdb.integer("$rip") == 0xFFF0
    assert gdb.integer("$cs_base") == 0xFFFF0000
    assert gdb.run_to_stop()["reason"] == "breakpoint-hit"
    assert gdb.integer("$pc") == pc


def test_interrupt_in_firmware(gdb: GdbSession, fresh: Qemu, fresh_server: KvmgdbServer) -> None:
    """Without a disk SeaBIOS ends in 16-bit code that waits for an interrupt."""
    text = gdb.connect(fresh_server.address)
    for _ in range(3):
        gdb.resume()
        gdb.interrupt()
        registers = gdb.cli("monitor vmm info registers")
        rip = re.search(r"E?IP=([0-9a-f]+)", registers)
        assert rip
        assert gdb.integer("$rip") == int(rip[1], 16)
        base = re.search(r"^CS =\w+ (\w+)", registers, re.MULTILINE)
        assert base
        assert gdb.integer("$cs_base") == int(base[1], 16)
        linear = gdb.integer("$cs_base") + gdb.integer("$rip")
        shown = gdb.cli(f"x/8xb {linear:#x}")
        said = gdb.cli(f"monitor vmm xp/8xb {linear:#x}")
        assert re.findall(r"0x\w\w\b", shown) == re.findall(r"0x\w\w\b", said)
    assert "too long" not in text
