"""The zero page of a stock bzImage, against what QEMU's loader and the kernel's
own real-mode code make of the same kernel, initrd and command line."""

from __future__ import annotations

import struct
import subprocess
import time
from pathlib import Path

from kvmgdb.demo.kernel import Kernel
from kvmgdb.demo.process import end
from tests.support.gdb import gdb_batch
from tests.support.require import SYSTEM_GDB, requires_gdb, requires_qemu
from tests.vmm.vmm import Vmm

MEMORY = "512M"
COMMAND_LINE = "one=1 two"
ZERO_PAGE = 0x8000  # BOOT_INFORMATION of native/vmm/boot.h

# Documentation/arch/x86/boot.rst: offset and size of the setup header's fields.
SAME = {
    "setup_sects": (0x1F1, 1),
    "root_flags": (0x1F2, 2),
    "syssize": (0x1F4, 4),
    "root_dev": (0x1FC, 2),
    "boot_flag": (0x1FE, 2),
    "jump": (0x200, 2),
    "header": (0x202, 4),
    "version": (0x206, 2),
    "kernel_version": (0x20E, 2),
    "ramdisk_size": (0x21C, 4),
    "initrd_addr_max": (0x22C, 4),
    "kernel_alignment": (0x230, 4),
    "relocatable_kernel": (0x234, 1),
    "min_alignment": (0x235, 1),
    "xloadflags": (0x236, 2),
    "cmdline_size": (0x238, 4),
    "hardware_subarch": (0x23C, 4),
    "payload_offset": (0x248, 4),
    "payload_length": (0x24C, 4),
    "setup_data": (0x250, 8),
    "pref_address": (0x258, 8),
    "init_size": (0x260, 4),
    "handover_offset": (0x264, 4),
    "kernel_info_offset": (0x268, 4),
    "sentinel": (0x1EF, 1),
    "ext_ramdisk": (0x0C0, 8),
    "ext_cmd_line_ptr": (0x0C8, 4),
    "efi_info": (0x1C0, 32),
}
LOADED_HIGH = 1
# QEMU loads a bzImage at 1 MiB and enters it in 32-bit mode; this is startup_64.
QEMU_ENTRY = 0x100200


def field(page: bytes, offset: int, size: int) -> int:
    return int.from_bytes(page[offset : offset + size], "little")


def usable(page: bytes) -> list[tuple[int, int]]:
    entries = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(page[0x1E8])]
    return [(start, start + size) for start, size, kind in entries if kind == 1]


def qemu_zero_page(kernel: Path, initrd: Path, directory: Path) -> bytes:
    stub = directory / "stub"
    dump = directory / "zero-page"
    process = subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-accel", "tcg"),
            *("-m", MEMORY, "-display", "none", "-serial", "null", "-monitor", "none"),
            *("-S", "-gdb", f"unix:{stub},server=on,wait=off"),
            *("-kernel", kernel, "-initrd", initrd, "-append", COMMAND_LINE),
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 90
        while not stub.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        output = gdb_batch(
            SYSTEM_GDB,
            "set arch i386:x86-64",
            f"target remote {stub}",
            f"hbreak *{QEMU_ENTRY:#x}",
            "continue",
            f"dump binary memory {dump} $rsi $rsi+4096",
            "kill",
            seconds=120,
        ).text
        assert dump.exists(), output
        return dump.read_bytes()
    finally:
        end(process)


@requires_qemu
@requires_gdb
def test_the_zero_page_agrees_with_qemus(linux_kernel: Kernel, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"an initrd" * 1000)
    theirs = qemu_zero_page(linux_kernel.vmlinuz, initrd, tmp_path)
    arguments = ("-m", MEMORY, "-S", "-i", initrd, "-a", COMMAND_LINE, linux_kernel.vmlinuz)
    with Vmm(*arguments) as vmm:
        assert vmm.command("status")["protocol"] == "bzimage"
        ours = vmm.memory(ZERO_PAGE, 4096)
        loaded = vmm.memory(field(ours, 0x214, 4), 4096)
        command_line = vmm.memory(field(ours, 0x228, 4), len(COMMAND_LINE) + 1)
        module = vmm.memory(field(ours, 0x218, 4), 9000)
    assert {name: field(ours, *place) for name, place in SAME.items()} == {
        name: field(theirs, *place) for name, place in SAME.items()
    }
    # What may differ: where things are, and who loaded them.
    assert field(ours, 0x211, 1) & LOADED_HIGH
    assert field(ours, 0x214, 4) == field(ours, 0x258, 8), "loaded at its preferred address"
    assert field(ours, 0x210, 1) == 0xFF, "type_of_loader: undefined"
    offset = (field(ours, 0x1F1, 1) + 1) * 512
    assert loaded == linux_kernel.vmlinuz.read_bytes()[offset : offset + 4096]
    assert command_line == COMMAND_LINE.encode() + b"\0"
    assert module == initrd.read_bytes()
    assert field(ours, 0x218, 4) % 4096 == 0
    # QEMU's BIOS keeps something at the top for itself.
    assert usable(ours) == [(0, 0x9FC00), (0x100000, 512 << 20)]
    assert usable(theirs)[0] == usable(ours)[0]
    assert usable(theirs)[1][0] == 0x100000


def test_every_byte_outside_of_the_setup_header_is_accounted_for(
    linux_kernel: Kernel,
) -> None:
    """A loader must not leak other fields of the file into the zero page: the
    kernel trusts them once `sentinel` is 0."""
    with Vmm("-m", MEMORY, "-S", linux_kernel.vmlinuz) as vmm:
        page = vmm.memory(ZERO_PAGE, 4096)
    known = [(0x70, 8), (0x1E8, 1), (0x1F1, 0x290 - 0x1F1), (0x2D0, 20 * page[0x1E8])]
    rest = bytearray(page)
    for offset, size in known:
        rest[offset : offset + size] = bytes(size)
    assert not any(rest)
