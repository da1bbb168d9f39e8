"""``m M X x qSearch:memory qCRC``, and guest-physical addresses."""

from __future__ import annotations

import os
import re

import pytest

from kvmgdb.rsp.dispatch import PACKET_SIZE
from tests.machine.rom_guest import COUNTERS, HIGH, HIGH_PAGES, READ_ONLY, ROM_COPY, RomGuest
from tests.rsp.conftest import GDB_FEATURES, NewClient
from tests.rsp.wire import Client, Rig, decode, frame

PAGE = 0x1000
FAULT = b"E.cannot access guest memory at "


def xp(client: Client, gpa: int, length: int) -> bytes:
    """Guest-physical memory, as QEMU's own monitor shows it."""
    text = client.monitor(f"vmm xp /{length}xb {gpa:#x}")
    return bytes(
        int(byte, 16) for line in text.splitlines() for byte in re.findall(r"0x(\w\w)\b", line)
    )


def read(client: Client, address: int, length: int) -> bytes:
    return bytes.fromhex(client.ask(b"m%x,%x" % (address, length)).decode())


def test_code_is_what_was_assembled(client: Client, rom_guest: RomGuest) -> None:
    start = rom_guest.symbol("work") - ROM_COPY
    expected = rom_guest.rom.image[start : start + 64]
    assert read(client, rom_guest.symbol("work"), 64) == expected
    assert client.ask(b"x%x,40" % rom_guest.symbol("work")) == b"b" + expected


@pytest.mark.parametrize("packet", [b"M", b"X"])
def test_what_is_written_is_read_and_is_in_the_guest(client: Client, packet: bytes) -> None:
    data = os.urandom(300) + b"#$}*\0" * 20
    text = data.hex().encode() if packet == b"M" else data
    assert client.ask(b"%b%x,%x:%b" % (packet, HIGH + 0x100, len(data), text)) == b"OK"
    assert read(client, HIGH + 0x100, len(data)) == data
    assert client.ask(b"x%x,%x" % (HIGH + 0x100, len(data))) == b"b" + data
    assert xp(client, HIGH_PAGES[0] + 0x100, len(data)) == data


def test_every_byte_value_survives(client: Client) -> None:
    data = bytes(range(256)) * 3
    assert client.ask(b"X%x,%x:%b" % (HIGH + 0x400, len(data), data)) == b"OK"
    assert client.ask(b"x%x,%x" % (HIGH + 0x400, len(data))) == b"b" + data
    assert read(client, HIGH + 0x400, len(data)) == data


def test_a_range_over_pages_that_are_apart(client: Client) -> None:
    low, high = b"L" * 16, b"H" * 16
    assert client.ask(b"X%x,10:%b" % (HIGH + 4 * PAGE - 16, low)) == b"OK"
    assert client.ask(b"X%x,10:%b" % (HIGH + 4 * PAGE, high)) == b"OK"
    assert read(client, HIGH + 4 * PAGE - 16, 32) == low + high
    assert xp(client, HIGH_PAGES[3] + PAGE - 16, 16) == low
    assert xp(client, HIGH_PAGES[4], 16) == high


@pytest.mark.parametrize(("prefix", "packet"), [(b"", b"m"), (b"b", b"x")])
def test_a_read_ends_at_the_first_page_that_is_not_there(
    client: Client, prefix: bytes, packet: bytes
) -> None:
    hole = HIGH + 2 * PAGE
    expected = read(client, hole - 8, 8)
    text = expected.hex().encode() if packet == b"m" else expected
    assert client.ask(b"%b%x,40" % (packet, hole - 8)) == prefix + text
    assert client.ask(b"%b%x,10000" % (packet, hole - 8)) == prefix + text
    assert client.ask(b"%b%x,1" % (packet, hole)) == FAULT + (
        b"0xffffffffffc02000: level-1 page-table entry is 0x0"
    )


def test_addresses_that_cannot_be_read(client: Client) -> None:
    above_ram = client.ask(b"m%x,4" % (HIGH + 5 * PAGE))
    assert above_ram == FAULT + b"0xffffffffffc05000: there is no RAM behind it"
    assert client.ask(b"m800000000000,4") == FAULT + b"0x800000000000: the address is not canonical"
    assert client.ask(b"m8000000,4").startswith(FAULT + b"0x8000000: level-2")
    # The end of the address space: two bytes and no more, or none.
    assert client.ask(b"mffffffffffffffff,4").startswith(FAULT)
    assert client.ask(b"xffffffffffffffff,ffffffffffffffff").startswith(FAULT)


def test_nothing_is_nothing(client: Client) -> None:
    assert client.ask(b"m%x,0" % HIGH) == b""
    assert client.ask(b"x%x,0" % HIGH) == b"b"
    assert client.ask(b"M%x,0:" % HIGH) == b"OK"
    # How GDB finds out whether there is X.
    assert client.ask(b"X0,0:") == b"OK"


def test_a_long_read_is_cut_to_what_fits(client: Client) -> None:
    data = client.ask(b"m0,100000")
    assert len(data) // 2 >= 0x8000
    assert len(data) + 4 <= PACKET_SIZE
    binary = client.ask(b"x0,100000")
    assert binary[1 : 1 + len(data) // 2] == bytes.fromhex(data.decode())


def test_read_only_pages_can_be_written_by_a_debugger(client: Client) -> None:
    assert client.ask(b"M%x,4:01020304" % READ_ONLY) == b"OK"
    assert read(client, READ_ONLY, 4) == bytes([1, 2, 3, 4])


def test_a_write_over_a_hole_writes_nothing(client: Client) -> None:
    hole = HIGH + 2 * PAGE
    before = read(client, hole - 8, 8)
    changed = bytes(byte ^ 0xFF for byte in before) * 2
    assert client.ask(b"M%x,10:%b" % (hole - 8, changed.hex().encode())).startswith(FAULT)
    assert read(client, hole - 8, 8) == before
    assert client.ask(b"Mfffffffffffffffc,8:0000000000000000").startswith(b"E.")


def test_code_that_is_written_is_what_runs(client: Client, rom_guest: RomGuest) -> None:
    """QEMU runs translations: a write must reach those, too."""
    work, store = rom_guest.symbol("work"), rom_guest.symbol("store")
    original = read(client, work, 3)
    assert original == bytes.fromhex("49ffc5")  # inc %r13
    before = int.from_bytes(bytes.fromhex(client.ask(b"pd").decode()), "little")
    assert client.ask(b"M%x,3:49ffcd" % work) == b"OK"  # dec %r13
    assert client.ask(b"vCont;s:p1.1").startswith(b"T05")
    after = int.from_bytes(bytes.fromhex(client.ask(b"pd").decode()), "little")
    assert (after - before) % 2**64 == 2**64 - 1
    assert client.ask(b"M%x,3:%b" % (work, original.hex().encode())) == b"OK"
    assert store > work


@pytest.mark.parametrize(
    "packet",
    [
        b"m",
        b"m,",
        b"m1000",
        b"mg,1",
        b"m1000,",
        b"m1000,-1",
        b"m1000,1,1",
        b"x1000",
        b"M1000,1",
        b"M1000,1:",
        b"M1000,1:0",
        b"M1000,1:zz",
        b"M1000,1:0000",
        b"M1000,2:00",
        b"M:00",
        b"X1000,1",
        b"X1000,1:",
        b"X1000,1:ab",
        b"X:a",
        b"m10000000000000000,1",
        b"qCRC:",
        b"qCRC:1000",
        b"qCRC:g,1",
        b"qCRC:ffffffffffffffff,2",
        b"qSearch:memory:",
        b"qSearch:memory:0;10",
        b"qSearch:memory:0;10;",
        b"qSearch:memory:g;1;a",
        b"Qqemu.PhyMemMode:2",
        b"Qqemu.PhyMemMode:",
    ],
)
def test_malformed(client: Client, new_client: NewClient, packet: bytes) -> None:
    assert client.ask(packet).startswith(b"E.")
    assert client.ask(b"qC") == b"QCp1.1"
    # A client that has not announced error-message+ gets a number.
    old = new_client()
    assert re.fullmatch(rb"E[0-9a-f]{2}", old.ask(packet))


def crc32(data: bytes) -> int:
    """GDB's CRC (gdb/remote.c): polynomial 0x04c11db7, most significant bit first."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1) ^ 0x04C11DB7 if value & 0x80000000 else value << 1
            value &= 0xFFFFFFFF
    return value


@pytest.mark.parametrize("length", [0, 1, 7, 4096, 5000])
def test_crc(client: Client, length: int) -> None:
    data = read(client, ROM_COPY, length) if length else b""
    assert client.ask(b"qCRC:%x,%x" % (ROM_COPY, length)) == b"C%x" % crc32(data)


def test_crc_over_a_hole_is_an_error(client: Client) -> None:
    assert client.ask(b"qCRC:%x,2000" % (HIGH + PAGE)).startswith(FAULT)


def search(client: Client, address: int, length: int, pattern: bytes) -> bytes:
    return client.ask(b"qSearch:memory:%x;%x;%b" % (address, length, pattern))


def test_search(client: Client) -> None:
    needle = b"needle}#$*\0" + os.urandom(8)
    where = HIGH + 4 * PAGE - 5
    assert client.ask(b"X%x,%x:%b" % (where, len(needle), needle)) == b"OK"
    assert search(client, HIGH, 0x5000, needle) == b"1,%x" % where
    assert search(client, where, len(needle), needle) == b"1,%x" % where
    assert search(client, where + 1, 0x800, needle) == b"0"
    # Ends inside of the range only.
    assert search(client, where, len(needle) - 1, needle) == b"0"
    # Without the page above RAM and what is not mapped: nothing there, no error.
    assert search(client, HIGH + 2 * PAGE, PAGE, b"\0") == b"0"
    assert search(client, HIGH, 2**64 - HIGH, needle) == b"1,%x" % where


def test_others_get_a_turn_while_one_searches(
    client: Client, rig: Rig, new_client: NewClient
) -> None:
    other = new_client(*GDB_FEATURES)

    async def both() -> None:
        client.session.feed(frame(b"qSearch:memory:0;400000;" + os.urandom(16)))
        other.session.feed(frame(b"qC"))

    rig.loop.run_until_complete(both())
    assert other.wire.take_frame() is not None
    assert client.reply() == b"0"


def test_an_interrupt_ends_a_search_and_nothing_else(client: Client) -> None:
    search_all = frame(b"qSearch:memory:0;ffffffffffffffff;" + os.urandom(16))
    client.feed(search_all + frame(b"qC") + b"\x03" + frame(b"m20000,4"))
    assert client.reply() == b"E.interrupted"
    # The packets behind it are answered in their order.
    assert client.reply() == b"QCp1.1"
    assert len(client.reply()) == 8
    assert client.quiet()


def test_packets_behind_a_slow_one_keep_their_order(client: Client) -> None:
    packets = [
        b"qSearch:memory:0;400000;" + os.urandom(16),
        b"qC",
        b"qCRC:%x,4" % ROM_COPY,
        b"vMustReplyEmpty",
        b"qqemu.PhyMemMode",
    ]
    client.feed(b"".join(map(frame, packets)))
    replies = [client.reply() for _ in packets]
    crc = b"C%x" % crc32(read(client, ROM_COPY, 4))
    assert replies == [b"0", b"QCp1.1", crc, b"", b"0"]


def test_physical_addresses(client: Client) -> None:
    assert client.ask(b"qqemu.PhyMemMode") == b"0"
    assert client.ask(b"Qqemu.PhyMemMode:1") == b"OK"
    assert client.ask(b"qqemu.PhyMemMode") == b"1"
    assert read(client, COUNTERS, 16) == xp(client, COUNTERS, 16)
    gpa = HIGH_PAGES[3] + 0x80
    assert client.ask(b"M%x,4:a1b2c3d4" % gpa) == b"OK"
    assert read(client, gpa, 4) == bytes.fromhex("a1b2c3d4")
    assert client.ask(b"m%x,4" % HIGH) == FAULT + b"0xffffffffffc00000: there is no RAM behind it"
    # A write that does not fit into RAM is refused as a whole.
    end = 64 << 20
    assert client.ask(b"M%x,4:01020304" % (end - 2)).startswith(FAULT)
    assert client.ask(b"Qqemu.PhyMemMode:0") == b"OK"
    assert read(client, HIGH + 3 * PAGE + 0x80, 4) == bytes.fromhex("a1b2c3d4")


def test_physical_mode_is_each_debuggers_own(client: Client, new_client: NewClient) -> None:
    other = new_client(*GDB_FEATURES)
    assert client.ask(b"Qqemu.PhyMemMode:1") == b"OK"
    assert other.ask(b"qqemu.PhyMemMode") == b"0"
    assert other.ask(b"m%x,4" % HIGH) == client.ask(b"m%x,4" % HIGH_PAGES[0])


def test_the_decoder_of_these_tests_knows_run_lengths() -> None:
    assert decode(b"0* ") == b"0000"
    assert decode(b"a*~") == b"a" * 98
    assert decode(b"}\x03}]") == b"#}"
