"""What pwndbg, GEF, gdb-pt-dump and kernel scripts ask of QEMU's stub, and how they
read the answers. They are not here; what they send is."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.gdb import GdbError, GdbSession, gdb_batch
from tests.support.served import WatchedGuest
from tests.support.server import KvmgdbServer


def _packet(gdb: GdbSession, payload: str) -> str:
    match = re.search(r'received: "(.*)"', gdb.cli(f"maintenance packet {payload}"))
    assert match
    return match[1]


def test_it_is_taken_for_qemus_stub(connected: GdbSession) -> None:
    # pwndbg and GEF: is_qemu()
    assert "ENABLE=" in _packet(connected, "Qqemu.sstepbits")
    # GEF: is_qemu_system(); pwndbg wants no "Text=" there
    assert _packet(connected, "qOffsets") == ""
    # pwndbg: exec_file_supported()
    assert "qXfer:exec-file:read" in _packet(connected, "qSupported")


def test_memory_map_of_the_monitor(connected: GdbSession, guest: WatchedGuest) -> None:
    lines = connected.cli("monitor info mem").splitlines()
    covered = {}
    for line in lines:  # as pwndbg takes a line to pieces
        dash, space, last = line.index("-"), line.index(" "), line.rindex(" ")
        start, end = int(line[:dash], 16), int(line[dash + 1 : space], 16)
        assert end - start == int(line[space + 1 : last], 16)
        covered[start, end] = line[last + 1 :].strip()
    where = connected.integer("&vfs_read")
    assert any(start <= where < end and "r" in flags for (start, end), flags in covered.items())


def test_addresses_by_the_monitor(connected: GdbSession, guest: WatchedGuest) -> None:
    where = connected.integer("&linux_banner")
    physical = int(connected.cli(f"monitor gva2gpa {where:#x}").split()[-1], 16)
    assert physical == int(guest.hmp(f"gva2gpa {where:#x}").split()[-1], 16)
    host = connected.cli(f"monitor gpa2hva {physical:#x}")
    assert re.search(r"Host virtual address for 0x[0-9a-f]+ \(.+\) is 0x[0-9a-f]+", host)
    assert "Root memory region: system" in connected.cli("monitor info mtree -f")
    assert re.match(r"[0-9a-f]+: 0x", connected.cli(f"monitor xp/1gx {physical:#x}"))
    registers = connected.cli("monitor info registers")
    table = re.search(r"GDT\s*=\s*(\S+) (\S+)", registers)
    assert table
    assert int(table[1], 16) == connected.integer("$gdtr_base")


def test_page_tables_in_physical_mode(connected: GdbSession, guest: WatchedGuest) -> None:
    """As gdb-pt-dump and many a script of a class walk them."""
    where = connected.integer("&linux_banner")
    table = connected.integer("$cr3") & ~0xFFF
    assert _packet(connected, "qqemu.PhyMemMode") == "0"
    assert _packet(connected, "Qqemu.PhyMemMode:1") == "OK"
    entry = 0
    for shift in (39, 30, 21, 12):
        text = connected.cli(f"x/gx {table + 8 * (where >> shift & 511):#x}")
        entry = int(text.split()[-1], 16)
        assert entry & 1
        table = entry & 0xF_FFFF_FFFF_F000
        if shift in (30, 21) and entry & 0x80:
            table &= -1 << shift
            break
    physical = table | where & ((1 << shift) - 1)
    assert connected.cli(f"x/s {physical:#x}").split(":", 1)[1].strip().startswith('"Linux ')
    assert _packet(connected, "Qqemu.PhyMemMode:0") == "OK"


def test_what_a_program_would_have(connected: GdbSession, tmp_path: Path) -> None:
    """Refused, or empty: a guest is none. None of it may break the session."""
    assert connected.integer("$_inferior") == 1
    for command in ("info auxv", "info proc mappings", f"remote get /proc/1/maps {tmp_path}/maps"):
        try:
            text = connected.cli(command)
        except GdbError as error:
            text = str(error)
        assert not re.search("0x[0-9a-f]{6}", text), text
    assert "Kernel panic" not in connected.cli("x/i $pc")


def test_gdbs_python(gdb_path: str, server: KvmgdbServer) -> None:
    lines = (
        "import gdb",
        "inferior = gdb.selected_inferior()",
        "print('pid', inferior.pid, len(inferior.threads()))",
        "print('remote', inferior.connection.type)",
        "print('static', gdb.lookup_static_symbol('no_such_symbol_at_all'))",
        "print('global', gdb.lookup_global_symbol('init_task') is not None)",
        "print('size', gdb.lookup_type('struct list_head').sizeof)",
        "print('progspace', gdb.current_progspace().filename)",
        "print('arch', gdb.selected_frame().architecture().name())",
        "print('bytes', bytes(inferior.read_memory(gdb.parse_and_eval('&linux_banner'), 5)))",
    )
    output = gdb_batch(
        gdb_path, f"target remote {server.address}", *(f"python {line}" for line in lines)
    ).text
    for wanted in (
        "pid 1 2",
        "remote remote",
        "static None",
        "global True",
        "size 16",
        "progspace target:/kvmgdb/vmlinux-",
        "arch i386:x86-64",
        "bytes b'Linux'",
    ):
        assert wanted in output, output
