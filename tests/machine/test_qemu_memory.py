"""Guest RAM in the QEMU process: where it is, that its bytes are the guest's, and
that looking at it changes nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmgdb.errors import NoRamError, ProtocolError
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.native import Memory
from kvmgdb.machine.qemu_memory import QemuMemoryMap, parse_flat_view, read_maps
from kvmgdb.machine.qmp import Qmp
from tests.machine.rom_guest import COUNTERS, RomGuest
from tests.support.polling import wait_for
from tests.support.qemu import MEMORY_BACKENDS, memory_arguments
from tests.support.require import requires

pytestmark = requires("qemu", "cc")

MIB = 1 << 20
GIB = 1 << 30


@contextmanager
def mapped(megabytes: int, *arguments: str, backend: str = "private") -> Iterator[_Guest]:
    memory = tuple(memory_arguments(megabytes, backend))
    with RomGuest(*arguments, memory=memory) as guest:
        qmp = Qmp(SocketAddress(path=str(guest.qmp_socket)))
        memory_map = QemuMemoryMap(qmp, guest.pid)
        memory_map.refresh()
        yield _Guest(guest, qmp, memory_map)
        memory_map.close()
        qmp.close()


class _Guest:
    def __init__(self, guest: RomGuest, qmp: Qmp, memory_map: QemuMemoryMap) -> None:
        self.guest = guest
        self.qmp = qmp
        self.map = memory_map

    @property
    def memory(self) -> Memory:
        return self.map.memory

    def ram(self) -> list[tuple[int, int]]:
        """Writable ranges (start, end), joined where they touch."""
        ranges: list[tuple[int, int]] = []
        for region in sorted(self.map.regions, key=lambda region: region.gpa):
            if region.read_only:
                continue
            if ranges and ranges[-1][1] == region.gpa:
                ranges[-1] = (ranges[-1][0], region.gpa + region.size)
            else:
                ranges.append((region.gpa, region.gpa + region.size))
        return ranges

    def xp(self, gpa: int, length: int) -> bytes:
        text = self.qmp.hmp(f"xp /{length}xb {gpa:#x}")
        return bytes(
            int(byte, 16)
            for line in text.splitlines()
            for byte in re.findall(r"0x(\w\w)\b", line.partition(":")[2])
        )

    def resident(self) -> int:
        """Bytes of anonymous and shared memory that the QEMU process has touched."""
        status = Path(f"/proc/{self.guest.pid}/status").read_text()
        sizes = re.findall(r"^Rss(?:Anon|Shmem|File):\s+(\d+) kB", status, re.M)
        return sum(map(int, sizes)) * 1024

    def allocated(self) -> int:
        """Bytes that the shared memory's files take up."""
        total = 0
        for entry in os.listdir(f"/proc/{self.guest.pid}/fd"):
            path = f"/proc/{self.guest.pid}/fd/{entry}"
            if "memfd" in os.readlink(path):
                total += os.stat(path).st_blocks * 512
        return total


@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("backend", MEMORY_BACKENDS)
def test_bytes_are_those_of_the_monitor(machine: str, backend: str) -> None:
    with mapped(64, "-M", machine, backend=backend) as guest:
        source = "process" if backend == "private" else "file"
        largest = max(guest.map.regions, key=lambda region: region.size)
        assert largest.source == source
        assert guest.ram()[0][0] == 0
        assert guest.ram()[-1][1] == 64 * MIB
        guest.qmp.execute("cont")
        wait_for("the guest counts", lambda: any(guest.xp(COUNTERS, 8)))
        guest.qmp.execute("stop")
        guest.map.refresh()
        for gpa in (0x0, 0x8000, 0x10000, 0x20000, 0x30000, 0xF0000, 0xFFFF0, 64 * MIB - 64):
            assert guest.memory.read(gpa, 64) == guest.xp(gpa, 64), hex(gpa)
        assert guest.memory.read(0x30000, 0x1000) == guest.guest.rom.image[:0x1000]
        with pytest.raises(NoRamError):
            guest.memory.read(64 * MIB, 1)


@pytest.mark.parametrize("backend", MEMORY_BACKENDS)
@pytest.mark.parametrize(("machine", "low"), [("pc", 3 * GIB), ("q35", 2 * GIB)])
def test_ram_above_four_gibibytes(machine: str, low: int, backend: str) -> None:
    with mapped(5120, "-M", machine, backend=backend) as guest:
        assert guest.ram()[0][0] == 0
        assert guest.ram()[-1] == (4 * GIB, 4 * GIB + 5 * GIB - low)
        assert any(end == low for _, end in guest.ram())
        with pytest.raises(NoRamError):
            guest.memory.read(low, 1)
        with pytest.raises(NoRamError):
            guest.memory.read(9 * GIB - low, 1)
        assert guest.memory.read(4 * GIB, 64) == bytes(64) == guest.xp(4 * GIB, 64)


@pytest.mark.parametrize("backend", MEMORY_BACKENDS)
def test_reading_touches_nothing(backend: str) -> None:
    with mapped(1024, backend=backend) as guest:
        before = guest.resident(), guest.allocated()
        for start in range(16 * MIB, 1024 * MIB, 32 * MIB):
            data = guest.memory.read(start, 32 * MIB if start + 32 * MIB <= 1024 * MIB else MIB)
            assert data.count(0) == len(data)
        after = guest.resident(), guest.allocated()
        # QEMU itself may do a little; a gibibyte it does not.
        assert after[0] - before[0] < 8 * MIB, (before, after)
        assert after[1] == before[1]


def test_a_layout_that_did_not_change() -> None:
    with mapped(64) as guest:
        assert guest.map.refresh() is False
        assert guest.map.refresh(thorough=False) is False


def test_views_of_the_monitor() -> None:
    text = (
        'FlatView #0\n AS "I/O", root: io\n  0000000000000000-0000000000000007 (prio 0, i/o): x\n\n'
        'FlatView #1\n AS "memory", root: system\n AS "cpu-memory-0", root: system\n'
        " Root memory region: system\n"
        "  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM\n"
        "  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem\n"
        "  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom\n"
        "  0000000000100000-0000000003ffffff (prio 0, ram): pc.ram @0000000000100000\n"
    )
    assert [(r.gpa, r.end, r.name, r.read_only) for r in parse_flat_view(text)] == [
        (0, 0xA0000, "pc.ram", False),
        (0xC0000, 0xE0000, "pc.rom", True),
        (0x100000, 0x4000000, "pc.ram", False),
    ]


@pytest.mark.parametrize("text", ["", "junk", 'FlatView #0\n AS "I/O"\n'])
def test_views_that_are_none(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_flat_view(text)


def test_maps_of_our_own_process() -> None:
    mappings = read_maps(os.getpid())
    assert any(mapping.path == "[stack]" for mapping in mappings)
    assert all(mapping.start < mapping.end for mapping in mappings)
