"""``g G p P``: what a debugger reads is what QEMU's monitor says."""

from __future__ import annotations

import re

import pytest

from kvmgdb.machine.registers import BY_NAME, REGISTERS, STOP_REGISTERS, STOP_SIZE
from tests.machine.rom_guest import RomGuest
from tests.rsp.wire import Client


def number(name: str) -> bytes:
    return b"%x" % BY_NAME[name].number


def read(client: Client, name: str) -> int:
    return int.from_bytes(bytes.fromhex(client.ask(b"p" + number(name)).decode()), "little")


def block(client: Client) -> bytes:
    reply = client.ask(b"g")
    assert len(reply) == 2 * STOP_SIZE
    return bytes.fromhex(reply.replace(b"x", b"0").decode())


@pytest.mark.parametrize("vcpu", [0, 1])
def test_against_the_monitor(client: Client, vcpu: int) -> None:
    assert client.ask(b"Hgp1.%x" % (vcpu + 1)) == b"OK"
    text = client.monitor("vmm info registers")
    names = {"RIP": "rip", "RSP": "rsp", "RBX": "rbx", "R12": "r12", "R13": "r13"}
    names |= {"CR0": "cr0", "CR2": "cr2", "CR3": "cr3", "CR4": "cr4", "EFER": "efer"}
    for theirs, ours in names.items():
        match = re.search(rf"\b{theirs} ?=([0-9a-f]+)", text)
        assert match, theirs
        assert read(client, ours) == int(match[1], 16), ours
    segments = re.findall(r"^(CS|SS|GS) =([0-9a-f]{4}) ([0-9a-f]{16})", text, re.M)
    assert len(segments) == 3
    for name, selector, base in segments:
        assert read(client, name.lower()) == int(selector, 16)
        assert read(client, f"{name.lower()}_base") == int(base, 16)


def test_the_block_and_the_single_ones_agree(client: Client) -> None:
    data = block(client)
    for register in STOP_REGISTERS:
        reply = client.ask(b"p%x" % register.number)
        shown = data[register.offset : register.offset + register.size]
        assert reply in (shown.hex().encode(), b"xx" * register.size), register.name


def test_what_the_guest_has_put_there(client: Client, rom_guest: RomGuest) -> None:
    assert read(client, "rip") == rom_guest.symbol("work")
    assert read(client, "r12") == 0x123456789ABCDEF0
    assert read(client, "xmm3") == 0x123456789ABCDEF0
    assert read(client, "k_gs_base") == 0x1122334455667788
    assert read(client, "cs") == 0x18
    assert read(client, "efer") & 0x500 == 0x500
    assert read(client, "cr3") == 0x10000


@pytest.mark.parametrize("register", [r for r in REGISTERS if r.name.startswith("dr")])
def test_registers_behind_the_block(client: Client, register: object) -> None:
    name = getattr(register, "name", "")
    text = client.monitor("vmm info registers")
    match = re.search(rf"\b{name.upper()}=([0-9a-f]+)", text)
    assert match
    assert read(client, name) == int(match[1], 16)


def test_what_nobody_knows_is_unavailable(client: Client) -> None:
    assert client.ask(b"p" + number("tsc_aux")) == b"xx" * 8


def test_write_one(client: Client) -> None:
    assert client.ask(b"P" + number("rax") + b"=8877665544332211") == b"OK"
    assert read(client, "rax") == 0x1122334455667788
    assert "RAX=1122334455667788" in client.monitor("vmm info registers")
    assert client.ask(b"P" + number("xmm5") + b"=" + b"0123456789abcdef" * 2) == b"OK"
    assert client.ask(b"p" + number("xmm5")) == b"0123456789abcdef" * 2


def test_write_all_writes_what_differs(client: Client) -> None:
    before = client.ask(b"g")
    rcx = BY_NAME["rcx"]
    changed = bytearray(before)
    changed[2 * rcx.offset : 2 * (rcx.offset + 8)] = b"efbeadde00000000"
    assert client.ask(b"G" + bytes(changed)) == b"OK"
    assert client.ask(b"g") == bytes(changed)
    # A shorter block leaves the rest alone; unavailable ones stay as they are.
    assert client.ask(b"G" + b"xx" * 8 + before[16:64]) == b"OK"
    assert read(client, "rcx") == int.from_bytes(
        bytes.fromhex(before[2 * rcx.offset : 2 * rcx.offset + 16].decode()), "little"
    )
    assert read(client, "r12") == 0x123456789ABCDEF0


def test_vcpus_have_their_own(client: Client) -> None:
    assert client.ask(b"Hgp1.2") == b"OK"
    second = client.ask(b"g")
    assert client.ask(b"Hgp1.1") == b"OK"
    assert client.ask(b"g") != second


def test_a_register_that_cannot_be_written(client: Client) -> None:
    before = read(client, "tr")
    reply = client.ask(b"P" + number("tr") + b"=00010000")
    assert reply.startswith(b"E."), reply
    assert read(client, "tr") == before


@pytest.mark.parametrize(
    "packet",
    [
        b"p",
        b"pffff",
        b"pg",
        b"p-1",
        b"P",
        b"P0",
        b"P0=",
        b"P0=00",
        b"P0=" + b"0" * 18,
        b"P0=zz00000000000000",
        b"Pffff=00",
        b"P=00",
        b"G0",
        b"Gzz",
        b"G" + b"00" * (STOP_SIZE + 1),
    ],
)
def test_malformed(client: Client, packet: bytes) -> None:
    before = client.ask(b"g")
    assert client.ask(packet).startswith(b"E."), packet
    assert client.ask(b"g") == before
