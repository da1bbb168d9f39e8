"""Guest memory, compared with what QEMU reads, and with what the guest itself sees."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from tests.support.gdb import GdbError, GdbSession, gdb_batch
from tests.support.served import WatchedGuest
from tests.support.server import KvmgdbServer

_HUGE_PAGE = 2 << 20


def _packet(gdb: GdbSession, payload: str) -> str:
    """``maint packet``: the reply."""
    match = re.search(r'received: "(.*)"', gdb.cli(f"maint packet {payload}"))
    assert match
    return match[1]


def _crc(data: bytes) -> int:
    """The CRC of ``qCRC`` (GDB manual, "Packets"): 0x04c11db7, most significant
    bit first, starting from all ones, not inverted at the end."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


def _mapped(guest: WatchedGuest, gva: int) -> bool:
    return guest.hmp(f"gva2gpa {gva:#x}").startswith("gpa:")


def _end_of_kernel_mapping(guest: WatchedGuest, end: int) -> int:
    """The first address after the kernel's image that its page tables do not map."""
    address = end & -_HUGE_PAGE
    while _mapped(guest, address):
        address += _HUGE_PAGE
    assert _mapped(guest, address - 1)
    return address


def test_reads_agree_with_qemu(
    gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer, tmp_path: Path
) -> None:
    text, stack = guest.symbol("_text"), guest.symbol("init_thread_union")
    gdb.connect(server.address)
    for start, length in (
        (text, 1 << 20),
        (text + 0xFFF, 2),
        (text + 0x12345, 0x3003),
        (stack + 0x2000, 0x2000),
        (gdb.integer("$idtr_base"), 4096),
    ):
        file = tmp_path / f"{start:x}"
        gdb.cli(f"dump binary memory {file} {start:#x} {start + length:#x}")
        assert file.read_bytes() == guest.memory(start, length), hex(start)
    word = int(re.findall(r"0x[0-9a-f]+$", guest.hmp(f"x/1gx {text:#x}").strip())[0], 16)
    assert gdb.integer(f"*(unsigned long *) {text:#x}") == word


def test_unaligned_reads_of_any_length(
    gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    banner = guest.symbol("linux_banner")
    gdb.connect(server.address)
    expected = guest.memory(banner, 70)
    for length in (1, 2, 3, 5, 8, 13, 64):
        for offset in (0, 1, 5):
            reply = _packet(gdb, f"m{banner + offset:x},{length:x}")
            assert bytes.fromhex(reply) == expected[offset : offset + length]


def test_read_into_an_unmapped_page_returns_what_is_before(
    gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    end = _end_of_kernel_mapping(guest, guest.symbol("_end"))
    gdb.connect(server.address)
    assert bytes.fromhex(_packet(gdb, f"m{end - 8:x},40")) == guest.memory(end - 8, 8)
    with pytest.raises(GdbError, match=f"Cannot access memory at address {end:#x}"):
        gdb.cli(f"x/4gx {end - 16:#x}")
    # GDB 16 and later take the error's words, older ones its number (EFAULT).
    assert re.fullmatch(rf"E0e|E\..*{end:#x}.*", _packet(gdb, f"m{end:x},8"))


def test_addresses_that_are_not_mapped(connected: GdbSession) -> None:
    for address in ("0", "0x10", "0x8000000000000000", "0xfffffffffffffff8"):
        with pytest.raises(GdbError, match="Cannot access memory"):
            connected.cli(f"x/gx {address}")
        with pytest.raises(GdbError, match="Cannot access memory"):
            connected.cli(f"set *(unsigned long *) {address} = 1")


def test_a_long_write_arrives_whole(
    gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer, tmp_path: Path
) -> None:
    """Over pages, past every packet size, and with every byte that needs an escape."""
    start = guest.symbol("_text") + 0x1234
    gdb.connect(server.address)
    before = guest.memory(start, 0x30000)
    new, old = tmp_path / "new", tmp_path / "old"
    new.write_bytes(bytes((i * 7 + (i >> 8)) & 0xFF for i in range(len(before))))
    old.write_bytes(before)
    gdb.cli(f"restore {new} binary {start:#x}")
    try:
        assert guest.memory(start, len(before)) == new.read_bytes()
    finally:
        gdb.cli(f"restore {old} binary {start:#x}")
    assert guest.memory(start, len(before)) == before


def test_a_write_into_an_unmapped_page_changes_nothing(
    gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    end = _end_of_kernel_mapping(guest, guest.symbol("_end"))
    gdb.connect(server.address)
    before = guest.memory(end - 8, 8)
    assert _packet(gdb, f"M{end - 8:x},10:{'5a' * 16}").startswith("E")
    assert guest.memory(end - 8, 8) == before


def test_the_guest_sees_a_write_to_its_read_only_data(
    gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    banner = guest.symbol("linux_proc_banner")
    before = guest.linux.read_file("/proc/version")
    assert before.startswith(b"Linux version ")
    gdb.connect(server.address)
    assert bytes.fromhex(_packet(gdb, f"m{banner:x},a")) == b"%s version"
    gdb.cli(f"set {{char[7]}} {banner + 3:#x} = {{86, 69, 82, 83, 73, 79, 78}}")
    gdb.resume()
    assert guest.linux.read_file("/proc/version") == before.replace(b"version", b"VERSION", 1)
    gdb.interrupt()
    gdb.cli(f"set {{char[7]}} {banner + 3:#x} = {{118, 101, 114, 115, 105, 111, 110}}")
    gdb.cli("detach")
    assert guest.linux.read_file("/proc/version") == before


def test_the_guest_executes_code_that_was_written(
    gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    """nr_context_switches() is what /proc/stat prints after "ctxt". It has run
    before, so QEMU has a translation of it that the write makes stale."""
    function = guest.symbol("nr_context_switches")

    def switches() -> int:
        match = re.search(rb"^ctxt (\d+)$", guest.linux.read_file("/proc/stat"), re.MULTILINE)
        assert match
        return int(match[1])

    before = switches()
    gdb.connect(server.address)
    old = struct.unpack("<Q", guest.memory(function, 8))[0]
    # b8 67 45 23 01   mov $0x1234567, %eax
    # c3               ret
    new = old & 0xFFFF << 48 | int.from_bytes(bytes.fromhex("b867452301c3"), "little")
    gdb.cli(f"set *(unsigned long *) {function:#x} = {new:#x}")
    gdb.resume()
    assert switches() == 0x1234567
    gdb.interrupt()
    gdb.cli(f"set *(unsigned long *) {function:#x} = {old:#x}")
    gdb.cli("detach")
    assert before < switches() != 0x1234567


def test_find(gdb_path: str, guest: WatchedGuest, server: KvmgdbServer) -> None:
    start = guest.symbol("_text")
    banner = guest.symbol("linux_banner")
    length = banner + 0x1000 - start
    where = f"{start:#x}, +{length:#x}"
    pattern = guest.memory(banner, 24)
    image = guest.memory(start, length)
    expected = [start + match.start() for match in re.finditer(re.escape(pattern), image)]
    assert banner in expected
    words = ", ".join(f"{byte:#x}" for byte in pattern)
    output = gdb_batch(
        gdb_path,
        f"target remote {server.address}",
        f"find /b {where}, {words}",
        f"find /b {banner:#x}, +8, 1, 2, 3, 4",
    )
    assert [int(line, 16) for line in re.findall(r"^0x[0-9a-f]+", output.stdout, re.MULTILINE)][
        -len(expected) :
    ] == expected
    assert f"{len(expected)} pattern" in output.stdout
    assert "Pattern not found" in output.text


def test_crc(gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer) -> None:
    start = guest.symbol("_text") + 0x123
    end = _end_of_kernel_mapping(guest, guest.symbol("_end"))
    gdb.connect(server.address)
    for length in (1, 4096, 0x8001):
        expected = _crc(guest.memory(start, length))
        assert _packet(gdb, f"qCRC:{start:x},{length:x}") == f"C{expected:x}"
    assert _packet(gdb, f"qCRC:{end - 8:x},10").startswith("E")


def test_physical_memory(gdb: GdbSession, guest: WatchedGuest, server: KvmgdbServer) -> None:
    banner = guest.symbol("linux_banner")
    gdb.connect(server.address)
    gpa = int(guest.hmp(f"gva2gpa {banner:#x}").split()[1], 16)
    assert _packet(gdb, "qqemu.PhyMemMode") == "0"
    assert _packet(gdb, "Qqemu.PhyMemMode:1") == "OK"
    assert _packet(gdb, "qqemu.PhyMemMode") == "1"
    expected = guest.physical_memory(gpa, 64)
    assert expected == guest.memory(banner, 64)
    assert bytes.fromhex(_packet(gdb, f"m{gpa:x},40")) == expected
    assert bytes.fromhex(_packet(gdb, "mffff0,10")) == guest.physical_memory(0xFFFF0, 16)
    assert _packet(gdb, "mffffffff0000,10").startswith("E")
    gdb.cli(f"set *(unsigned char *) {gpa:#x} = 0x6c")
    assert guest.physical_memory(gpa, 1) == b"l"
    gdb.cli(f"set *(unsigned char *) {gpa:#x} = 0x4c")
    assert guest.memory(banner, 64) == expected
    assert _packet(gdb, "Qqemu.PhyMemMode:2").startswith("E")
    assert _packet(gdb, "Qqemu.PhyMemMode:0") == "OK"
    assert bytes.fromhex(_packet(gdb, f"m{banner:x},40")) == expected
