"""Registers, compared with what QEMU's own monitor says of them."""

from __future__ import annotations

import re

import pytest

from tests.support.gdb import GdbError, GdbSession
from tests.support.served import WatchedGuest

_GENERAL = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip"]
_GENERAL += [f"r{number}" for number in range(8, 16)]
_CONTROL = ["cr0", "cr2", "cr3", "cr4", "efer"]


def _values(gdb: GdbSession) -> dict[str, str]:
    """All registers of the selected vCPU as GDB prints them in hex."""
    text = gdb.cli("info all-registers")
    return dict(re.findall(r"^(\w+) +(\S+)", text, re.MULTILINE))


def _qemu_values(text: str) -> dict[str, int]:
    """QEMU's ``info registers`` under GDB's names."""
    values = {
        name.lower(): int(value, 16)
        for name, value in re.findall(r"\b([A-Z][A-Z0-9]{1,3}) ?=([0-9a-f]{8,16})\b", text)
    }
    for name, selector, base, limit in re.findall(
        r"^([C-S]S|LDT|TR) *=([0-9a-f]{4}) ([0-9a-f]{16}) ([0-9a-f]{8})", text, re.MULTILINE
    ):
        key = {"LDT": "ldtr"}.get(name, name.lower())
        values[key] = int(selector, 16)
        values[f"{key}_base"], values[f"{key}_limit"] = int(base, 16), int(limit, 16)
    for name, base, limit in re.findall(
        r"^([GI]DT)= +([0-9a-f]{16}) ([0-9a-f]{8})", text, re.MULTILINE
    ):
        values[f"{name.lower()}r_base"] = int(base, 16)
        values[f"{name.lower()}r_limit"] = int(limit, 16)
    match = re.search(r"RFL=([0-9a-f]+)", text)
    assert match
    values["eflags"] = int(match[1], 16)
    match = re.search(r"FCW=([0-9a-f]+) .* MXCSR=([0-9a-f]+)", text)
    assert match
    values["fctrl"], values["mxcsr"] = int(match[1], 16), int(match[2], 16)
    return values


def test_all_registers_agree_with_qemu(
    connected: GdbSession, guest: WatchedGuest, hot: int
) -> None:
    gdb = connected
    gdb.cli(f"hbreak *{hot:#x}")
    stop = gdb.run_to_stop()
    assert gdb.integer("$rip") == hot
    compared = set()
    for vcpu in (0, 1):
        gdb.cli(f"thread {vcpu + 1}")
        shown = _values(gdb)
        said = _qemu_values(guest.hmp("info registers", vcpu))
        for name, value in said.items():
            if name in shown and shown[name].startswith("0x"):
                assert int(shown[name], 16) == value, (vcpu, name)
                compared.add(name)
    assert compared >= {*_GENERAL, *_CONTROL, "eflags", "cs", "ss", "fctrl", "mxcsr", "fs_base"}
    assert compared >= {"gs_base", "idtr_base", "gdtr_limit", "tr_base", "tr", "dr6", "dr7"}
    # The stop was of one vCPU, in the system call of a user process: its user
    # GS base waits in MSR_KERNEL_GS_BASE, and the kernel's is in use.
    gdb.cli(f"thread {stop['thread-id']}")
    assert gdb.integer("$gs_base") >> 47 == 0x1FFFF
    assert gdb.integer("$k_gs_base") >> 47 == 0


def test_unknown_registers_are_unavailable_not_zero(connected: GdbSession) -> None:
    for name in ("lstar", "star", "pat", "apic_base"):
        assert re.fullmatch(rf"{name} +<unavailable>\n", connected.cli(f"info registers {name}"))
        assert connected.value(f"${name}") == "<unavailable>"


def test_write_general_registers(connected: GdbSession, guest: WatchedGuest) -> None:
    gdb = connected
    for vcpu in (0, 1):
        gdb.cli(f"thread {vcpu + 1}")
        for name in ("rbx", "r15", "rdi", "rsp"):
            old = gdb.integer(f"${name}")
            # GDB reads the stack again, and says so where there is none.
            new = old - 64 if name == "rsp" else 0x1122334455667788
            other = guest.register(name.upper(), 1 - vcpu)
            gdb.cli(f"set ${name} = {new:#x}")
            assert guest.register(name.upper(), vcpu) == new
            assert guest.register(name.upper(), 1 - vcpu) == other
            gdb.cli(f"set ${name} = {old:#x}")
            assert guest.register(name.upper(), vcpu) == old


def test_write_flags_and_vectors(connected: GdbSession, guest: WatchedGuest) -> None:
    gdb = connected
    gdb.cli("thread 1")
    flags = guest.register("RFL")
    assert f"{flags:#x}" in gdb.cli("info registers eflags")
    gdb.cli(f"set $eflags = {flags ^ 0x801:#x}")
    assert guest.register("RFL") == flags ^ 0x801
    gdb.cli(f"set $eflags = {flags:#x}")
    assert guest.register("RFL") == flags
    old = gdb.value("$xmm7.uint128").split()[0]
    gdb.cli("set $xmm7.v2_int64[0] = 0x1111222233334444")
    gdb.cli("set $xmm7.v2_int64[1] = 0x5555666677778888")
    assert re.search(
        r"^YMM07=.* 5555666677778888 1111222233334444$", guest.hmp("info registers"), re.MULTILINE
    )
    gdb.cli(f"set $xmm7.uint128 = {old}")
    assert gdb.value("$xmm7.uint128").split()[0] == old


def test_a_write_that_the_target_refuses_is_an_error(connected: GdbSession) -> None:
    with pytest.raises(GdbError, match=r"(?i)lstar|register"):
        connected.cli("set $lstar = 1")
    with pytest.raises(GdbError, match=r"(?i)idtr_base|register"):
        connected.cli("set $idtr_base = 1")
    assert connected.integer("$idtr_base") > 1


def test_program_counter_takes_effect(connected: GdbSession, guest: WatchedGuest, hot: int) -> None:
    """Runs one instruction of the guest a second time, from a $pc that we set."""
    gdb = connected
    gdb.cli(f"hbreak *{hot:#x}")
    gdb.run_to_stop()
    gdb.cli("delete")
    gdb.run_to_stop("-exec-step-instruction")
    after = gdb.integer("$rip")
    assert after != hot
    gdb.cli(f"set $rip = {hot:#x}")
    gdb.run_to_stop("-exec-step-instruction")
    assert gdb.integer("$rip") == after
