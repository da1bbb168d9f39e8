"""Where QEMU keeps guest RAM, asked from its monitor and its process.

``info mtree -f`` lists guest-physical ranges, ``gpa2hva`` gives the
host-virtual address of each, ``/proc/PID/maps`` says what is mapped there:
private memory is read with process_vm_readv, a shared mapping through its file
(reading a hole through the mapping would allocate it).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvmgdb.errors import KvmgdbError, ProtocolError
from kvmgdb.machine.interface import RamRegion
from kvmgdb.machine.native import Memory
from kvmgdb.machine.qmp import Qmp

MAX_REGIONS = 4096
_VIEW_LINE = re.compile(
    r"^\s+(?P<start>[0-9a-f]{16})-(?P<end>[0-9a-f]{16}) \(prio -?\d+, (?P<kind>[\w/-]+)\): "
    r"(?P<name>.+?)(?: @(?P<offset>[0-9a-f]{16}))?(?P<flags>(?: [A-Za-z]\w*)*)$"
)
_HVA = re.compile(r"is (0x[0-9a-f]+)")
_MAPS_LINE = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<perms>\S+) (?P<offset>[0-9a-f]+) "
    r"(?P<device>[0-9a-f]+:[0-9a-f]+) (?P<inode>\d+)\s*(?P<path>.*)"
)
_RAM_KINDS = {"ram": False, "nv-ram": False, "rom": True, "romd": True}


@dataclass(frozen=True)
class FlatRange:
    """One range of a flat view; ``end`` is exclusive."""

    gpa: int
    end: int
    name: str
    read_only: bool


@dataclass(frozen=True)
class HostMapping:
    """One line of ``/proc/PID/maps``."""

    start: int
    end: int
    shared: bool
    offset: int
    device: str
    inode: int
    path: str


def parse_flat_view(text: str) -> list[FlatRange]:
    """RAM and ROM of the view that the vCPUs see, from ``info mtree -f``."""
    for view in text.split("FlatView #")[1:]:
        if 'AS "memory"' not in view and 'AS "cpu-memory-0"' not in view:
            continue
        ranges = []
        for line in view.splitlines():
            match = _VIEW_LINE.match(line)
            if match and match["kind"] in _RAM_KINDS:
                start, end = int(match["start"], 16), int(match["end"], 16) + 1
                if start < end:
                    read_only = _RAM_KINDS[match["kind"]]
                    ranges.append(FlatRange(start, end, match["name"], read_only))
        return ranges[:MAX_REGIONS]
    raise ProtocolError("QEMU's `info mtree -f` shows no view of the system's memory")


def ask_hva(qmp: Qmp, gpa: int) -> int | None:
    """Where QEMU has guest-physical memory mapped; None for what is no RAM."""
    match = _HVA.search(qmp.hmp(f"gpa2hva {gpa:#x}"))
    return int(match[1], 16) if match else None


def read_maps(pid: int) -> list[HostMapping]:
    """Raises OSError without the right to look."""
    mappings = []
    for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
        match = _MAPS_LINE.match(line)
        if match:
            mappings.append(
                HostMapping(
                    int(match["start"], 16),
                    int(match["end"], 16),
                    match["perms"][3] == "s",
                    int(match["offset"], 16),
                    match["device"],
                    int(match["inode"]),
                    match["path"],
                )
            )
    return mappings


class QemuMemoryMap:
    """Keeps a :class:`Memory` in step with QEMU's view of guest RAM."""

    def __init__(self, qmp: Qmp, pid: int) -> None:
        self._qmp = qmp
        self._pid = pid
        self.memory = Memory(pid)
        self.regions: tuple[RamRegion, ...] = ()
        self._view = ""
        self._hvas: dict[int, int] = {}

    def refresh(self, thorough: bool = True) -> bool:
        """Asks QEMU again; True where the layout has changed. Without
        ``thorough`` a view that looks as before is taken to be where it was:
        each question to the monitor costs 0.3 ms. Raises OSError where the host
        denies access to the process."""
        view = self._qmp.hmp("info mtree -f")
        ranges = parse_flat_view(view)
        if not thorough and "\n".join(map(str, ranges)) == self._view:
            return False
        hvas = {item.gpa: ask_hva(self._qmp, item.gpa) for item in ranges}
        known = {gpa: hva for gpa, hva in hvas.items() if hva is not None}
        shown = "\n".join(map(str, ranges))
        if shown == self._view and known == self._hvas:
            return False
        self._rebuild(ranges, known)
        self._view, self._hvas = shown, known
        return True

    def _rebuild(self, ranges: list[FlatRange], hvas: dict[int, int]) -> None:
        mappings = read_maps(self._pid)
        self.memory.clear()
        regions = []
        for item in ranges:
            hva = hvas.get(item.gpa)
            if hva is None:
                continue
            for gpa, size, mapping in self._pieces(item, hva, mappings):
                with contextlib.suppress(KvmgdbError):
                    source = self._add(gpa, size, hva + (gpa - item.gpa), mapping, item.read_only)
                    regions.append(RamRegion(gpa, size, item.name, source, item.read_only))
        self.regions = tuple(regions)

    @staticmethod
    def _pieces(
        item: FlatRange, hva: int, mappings: list[HostMapping]
    ) -> Iterator[tuple[int, int, HostMapping]]:
        """The range cut where the host's mappings are."""
        end = hva + (item.end - item.gpa)
        for mapping in mappings:
            start, stop = max(hva, mapping.start), min(end, mapping.end)
            if start < stop:
                yield item.gpa + (start - hva), stop - start, mapping

    def _add(self, gpa: int, size: int, hva: int, mapping: HostMapping, read_only: bool) -> str:
        if mapping.shared and mapping.inode:
            descriptor = self._open_backing(mapping)
            if descriptor is not None:
                try:
                    offset = mapping.offset + (hva - mapping.start)
                    self.memory.add_file(gpa, size, descriptor, offset, read_only)
                finally:
                    os.close(descriptor)
                return "file"
        self.memory.add_process(gpa, size, hva, read_only)
        return "process"

    def _open_backing(self, mapping: HostMapping) -> int | None:
        """The file behind a shared mapping: among the process's own descriptors,
        or by the mapping itself (which needs CAP_CHECKPOINT_RESTORE)."""
        names = [f"/proc/{self._pid}/map_files/{mapping.start:x}-{mapping.end:x}"]
        with contextlib.suppress(OSError):
            names += [f"/proc/{self._pid}/fd/{fd}" for fd in os.listdir(f"/proc/{self._pid}/fd")]
        for name in names:
            with contextlib.suppress(OSError):
                status = os.stat(name)
                device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
                if status.st_ino == mapping.inode and device == mapping.device:
                    return os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        return None

    def close(self) -> None:
        self.memory.close()
