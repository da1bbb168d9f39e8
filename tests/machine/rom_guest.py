"""A guest that is a firmware image of our own (rom.S): paused before its first
instruction it costs a fifth of a second, and running it is in 64-bit mode at once."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.qemu import Qemu

_SOURCE = Path(__file__).with_name("rom.S")
_LINKED_AT = 0xF0000

# Addresses of rom.S.
TABLES = 0x10000
COUNTERS = 0x20000
ROM_COPY = 0x30000
READ_ONLY = 0x200000
HIGH = 0xFFFFFFFFFFC00000
HIGH_PAGES = {0: 0x100000, 1: 0x101000, 3: 0x300000, 4: 0x110000}


@dataclass(frozen=True)
class Rom:
    """``image`` is the firmware; ``symbols`` are addresses where it runs (GVA)."""

    image: bytes
    symbols: dict[str, int]


@cache
def build_rom() -> Rom:
    """Assembles rom.S; needs gcc and binutils."""
    with TemporaryDirectory(prefix="kvmgdb-rom-") as name:
        directory = Path(name)
        _run(["gcc", "-c", "-o", "rom.o", str(_SOURCE)], directory)
        _run(
            ["ld", "-N", f"-Ttext={_LINKED_AT:#x}", "-e", "reset", "-o", "rom.elf", "rom.o"],
            directory,
        )
        _run(["objcopy", "-O", "binary", "-j", ".text", "rom.elf", "rom.bin"], directory)
        listing = _run(["nm", "rom.elf"], directory)
        symbols = {
            words[2]: int(words[0], 16) - _LINKED_AT + ROM_COPY
            for words in map(str.split, listing.splitlines())
        }
        return Rom((directory / "rom.bin").read_bytes(), symbols)


def _run(command: list[str], directory: Path) -> str:
    result = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=90, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


class RomGuest(Qemu):
    """QEMU with the firmware, paused before its first instruction; TCG, two vCPUs."""

    def __init__(self, *arguments: str, memory: tuple[str, ...] = ("-m", "64M")) -> None:
        self.rom = build_rom()
        self._directory = TemporaryDirectory(prefix="kvmgdb-rom-")
        image = Path(self._directory.name) / "rom.bin"
        image.write_bytes(self.rom.image)
        try:
            super().__init__(
                *("-accel", "tcg", "-cpu", "max", "-smp", "2", "-bios", str(image), "-S"),
                *memory,
                *arguments,
            )
        except BaseException:
            self._directory.cleanup()
            raise

    def __enter__(self) -> RomGuest:
        return self

    def symbol(self, name: str) -> int:
        """Where the guest runs what rom.S calls ``name`` (GVA, and GPA)."""
        return self.rom.symbols[name]

    def close(self) -> None:
        super().close()
        self._directory.cleanup()
