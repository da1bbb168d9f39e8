"""A debugger that was there before the kernel: it learns of it once it is there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmgdb.demo.initramfs import build_initramfs
from kvmgdb.demo.kernel import Kernel
from tests.support.gdb import GdbSession
from tests.support.server import KvmgdbServer

BOOT_SECONDS = 180.0


@pytest.fixture
def halted(linux_kernel: Kernel) -> Iterator[KvmgdbServer]:
    """A Linux kernel that waits before its first instruction."""
    arguments = [
        *(str(linux_kernel.vmlinuz), "--initrd", str(build_initramfs()), "--accel", "tcg", "-S"),
        *("--append", "console=ttyS0", "--cpus", "2", "--memory", "256M"),
    ]
    with KvmgdbServer(*arguments, verb="run") as server:
        yield server


def test_break_by_name_before_the_kernel_is_there(gdb: GdbSession, halted: KvmgdbServer) -> None:
    """And once more after a reset, with which KASLR puts it elsewhere."""
    gdb.connect(halted.address)
    assert "unknown" in gdb.cli("monitor info")
    gdb.cli("set breakpoint pending on")
    assert "pending" in gdb.cli("break run_init_process")
    assert gdb.run_to_stop(seconds=BOOT_SECONDS)["frame"]["func"] == "run_init_process"
    bases = [gdb.integer("&_text")]
    assert "kernel       Linux " in gdb.cli("monitor info")
    assert "reset" in gdb.cli("monitor reset")
    gdb.cli("maintenance flush register-cache")
    assert gdb.integer("$rip") == 0xFFF0
    assert gdb.run_to_stop(seconds=BOOT_SECONDS)["frame"]["func"] == "run_init_process"
    bases.append(gdb.integer("&_text"))
    for base in bases:
        assert base >= 0xFFFFFFFF80000000
        assert base % 0x200000 == 0
    gdb.cli("delete")
    gdb.resume()
    halted.wait_printed("kvmgdb-guest: ready", BOOT_SECONDS)
    gdb.interrupt()
