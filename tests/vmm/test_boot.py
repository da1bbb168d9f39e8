"""Each boot protocol hands over what it should; QEMU's loaders say the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.require import requires_qemu
from tests.vmm.vmm import GUESTS, run

IMAGES = {
    "bootinfo.elf": "pvh",
    "bootinfo.mb": "multiboot",
    "bootinfo-linux.elf": "linux",
    "bootinfo-linux.bzimage": "linux",
}
COMMAND_LINE = "one=1 two"
# The guests leave by writing 0x10 to the exit port.
LEFT = 0x10 << 1 | 1


@pytest.fixture
def initrd(tmp_path: Path) -> Path:
    path = tmp_path / "initrd"
    path.write_bytes(bytes(i * 7 % 256 for i in range(5000)))
    return path


def facts(output: str) -> dict[str, list[str]]:
    """What a bootinfo guest printed: all values of each key."""
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def usable(found: dict[str, list[str]]) -> list[tuple[int, int]]:
    entries = [[int(word, 16) for word in value.split()] for value in found["map"]]
    return [(start, start + size) for start, size, kind in entries if kind == 1]


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("memory", ["64M", "3G", "5G"])
def test_the_guest_is_told_what_it_was_given(image: str, memory: str, initrd: Path) -> None:
    result = run("-m", memory, "-i", initrd, "-a", COMMAND_LINE, GUESTS / image)
    assert result.returncode == LEFT, result.stderr
    found = facts(result.stdout)
    content = initrd.read_bytes()
    assert found["protocol"] == [IMAGES[image]]
    assert found["cmdline"] == [COMMAND_LINE]
    assert found["module"] == [f"{len(content):#x} {sum(content):#x}"]
    megabytes = {"64M": 64, "3G": 3072, "5G": 5120}[memory]
    low_end = min(megabytes, 3072) << 20
    high = [(4 << 30, (4 << 30) + ((megabytes - 3072) << 20))] if megabytes > 3072 else []
    assert usable(found) == [(0, 0x9FC00), (0x100000, low_end), *high]
    if IMAGES[image] != "multiboot":
        assert found["rsdp"] == ["RSD PTR "]


@pytest.mark.parametrize("image", IMAGES)
def test_without_initrd_and_command_line_there_is_none(image: str) -> None:
    found = facts(run("-m", "64M", GUESTS / image).stdout)
    assert "module" not in found
    assert found["cmdline"] == [""]


@pytest.mark.parametrize("image", ["bootinfo-linux.elf", "bootinfo-linux.bzimage"])
def test_the_linux_protocol_enters_in_long_mode(image: str) -> None:
    found = facts(run("-m", "64M", GUESTS / image).stdout)
    code, data, cr0, cr4, efer, flags = (int(word, 16) for word in found["cpu"][0].split())
    assert (code, data) == (0x10, 0x18)  # __BOOT_CS, __BOOT_DS
    assert cr0 & 0x80000001 == 0x80000001
    assert cr4 & 0x20
    assert efer & 0x500 == 0x500
    assert not flags & 0x200


@requires_qemu
@pytest.mark.parametrize("image", ["bootinfo.elf", "bootinfo.mb"])
def test_qemu_tells_the_guest_the_same(image: str, initrd: Path) -> None:
    ours = facts(run("-m", "256M", "-i", initrd, "-a", COMMAND_LINE, GUESTS / image).stdout)
    result = subprocess.run(
        [
            *("setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64"),
            *("-accel", "tcg", "-m", "256M", "-display", "none", "-serial", "stdio"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-no-reboot"),
            *("-kernel", GUESTS / image, "-initrd", initrd, "-append", COMMAND_LINE),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == LEFT, result.stderr
    theirs = facts(result.stdout)
    assert ours["protocol"] == theirs["protocol"]
    assert ours["module"] == theirs["module"]
    # QEMU puts the kernel's path before a multiboot command line.
    assert theirs["cmdline"][0].endswith(ours["cmdline"][0])
    # Its BIOS keeps something at the top of memory for itself.
    assert usable(ours)[0] == usable(theirs)[0]
    assert usable(ours)[1][0] == usable(theirs)[1][0]
    assert usable(ours)[1][1] - usable(theirs)[1][1] < 1 << 20


@pytest.mark.parametrize(
    ("address", "shown"), [("0x7c00", "0000:7c00"), ("0x20000", "2000:0000"), ("5000", "0000:1388")]
)
def test_a_flat_image_starts_in_real_mode_where_it_is_loaded(address: str, shown: str) -> None:
    result = run("--flat", address, GUESTS / "flat.bin")
    assert result.stdout == shown + "\n"
    assert result.returncode == 0x07 << 1 | 1


def test_the_protocol_can_be_chosen() -> None:
    """chain.mb is multiboot by its header; as an ELF it offers nothing else."""
    result = run("--protocol", "pvh", GUESTS / "chain.mb")
    assert result.returncode == 4
    assert "no PVH entry note" in result.stderr
