"""Guests whose kernel is not there: firmware, something else, one that panicked."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmgdb.demo.kernel import Kernel as KernelFiles
from kvmgdb.errors import (
    GuestDataError,
    MemoryFault,
    NoKernelError,
    NoRamError,
    NotFoundError,
)
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.identity import identify
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.locate import KERNEL_START, locate
from kvmgdb.linux.log import read_log
from kvmgdb.linux.modules import list_modules
from kvmgdb.linux.tasks import list_tasks
from kvmgdb.machine.interface import Action, Machine
from kvmgdb.machine.native import Memory, Paging
from kvmgdb.machine.target import parse_target
from tests.support.polling import wait_for
from tests.support.qemu import TCG, Qemu, free_port
from tests.support.require import requires_qemu
from tests.support.server import kvmgdb

ROOT = Path(__file__).resolve().parents[2]
LONG_MODE = {"cr0": 0x80000001, "cr4": 0x20, "efer": 0xD00}
MEBIBYTE = 1 << 20


@pytest.fixture
def firmware() -> Iterator[Qemu]:
    """A machine that has not executed an instruction yet."""
    with Qemu(*TCG, "-m", "64M", "-S") as qemu:
        yield qemu


@requires_qemu
def test_firmware(firmware: Qemu) -> None:
    machine = parse_target(str(firmware.pid)).open()
    try:
        with pytest.raises(NoKernelError, match="no Linux kernel is mapped") as raised:
            find_kernel(machine)
        assert "try again" in raised.value.remedy
    finally:
        machine.close()
    result = subprocess.run(
        [sys.executable, "-m", "kvmgdb", "info", str(firmware.pid), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(result.stdout)["kernel"] is None
    assert firmware.qmp("query-status")["status"] == "prelaunch"


def test_a_stub_is_not_asked_for_all_of_physical_memory() -> None:
    """It would take hours: each read is a packet, and the size of RAM is not known."""
    port = free_port()
    with Qemu("-accel", "tcg", "-m", "64M", "-S", "-gdb", f"tcp:127.0.0.1:{port}"):
        result = kvmgdb("info", f"rsp:127.0.0.1:{port}", "--json", seconds=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["kernel"] is None


@pytest.mark.slow
def test_a_kernel_that_panicked(linux_kernel: KernelFiles, tmp_path: Path) -> None:
    console = tmp_path / "console"
    with Qemu(
        *(*TCG, "-m", "256M", "-kernel", str(linux_kernel.vmlinuz)),
        *("-append", "console=ttyS0 panic=0", "-serial", f"file:{console}"),
    ) as qemu:
        wait_for("the guest panics", lambda: b"end Kernel panic" in console.read_bytes(), 240)
        machine = parse_target(str(qemu.pid)).open()
        try:
            kernel = find_kernel(machine)
            assert identify(kernel).state == "panicked"
            assert any("Kernel panic" in record.text for record in read_log(kernel))
        finally:
            machine.close()


@pytest.mark.slow
def test_at_any_moment_of_a_boot(linux_kernel: KernelFiles, tmp_path: Path) -> None:
    """From the first instruction on: no kernel yet, or one that can be read as far
    as it has come; never an error of another kind."""
    console = tmp_path / "console"
    states = []
    with Qemu(
        *(*TCG, "-m", "256M", "-kernel", str(linux_kernel.vmlinuz), "-S"),
        *("-append", "console=ttyS0 panic=0", "-serial", f"file:{console}"),
    ) as qemu:
        machine = parse_target(str(qemu.pid)).open()
        try:
            deadline = time.monotonic() + 400
            while "panicked" not in states and time.monotonic() < deadline:
                machine.stop()
                states.append(_look(machine))
                machine.resume({vcpu.index: Action.CONTINUE for vcpu in machine.vcpus})
                time.sleep(0.4)
        finally:
            machine.close()
    assert states[0] == "no kernel"
    assert "booting" in states
    assert states[-1] == "panicked"


def _look(machine: Machine) -> str:
    try:
        kernel = find_kernel(machine)
    except (NoKernelError, GuestDataError):
        return "no kernel"
    identity = identify(kernel)
    for read in (list_modules, list_tasks, read_log):
        try:
            read(kernel)
        except (NotFoundError, GuestDataError, MemoryFault, NoRamError):
            assert identity.state != "running"
    return identity.state


class Ram:
    """Guest-physical memory that a test writes: [0, size)."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)
        self.memory = Memory()
        self.memory.add_callback(0, size, lambda gpa, length: bytes(self.bytes[gpa : gpa + length]))

    def put(self, gpa: int, value: int) -> None:
        self.bytes[gpa : gpa + 8] = value.to_bytes(8, "little")

    def map_kernel(self, root: int, pages: int) -> None:
        """Huge pages from 0xffffffff81000000 on, all of which are at 2 MiB."""
        self.put(root + 8 * 511, root + 0x1000 | 3)
        self.put(root + 0x1000 + 8 * 510, root + 0x2000 | 3)
        for page in range(pages):
            self.put(root + 0x2000 + 8 * (8 + page), 2 * MEBIBYTE | 0x83)


@pytest.fixture
def ram() -> Iterator[Ram]:
    made = Ram(8 * MEBIBYTE)
    yield made
    made.memory.close()


def test_something_else_is_mapped_there(ram: Ram) -> None:
    ram.map_kernel(0x10000, 8)
    with pytest.raises(NoKernelError, match="has no kernel symbol table"):
        Kernel.find(ram.memory, [Paging(cr3=0x10000, **LONG_MODE)])
    found = locate(ram.memory, [Paging(cr3=0x10000, **LONG_MODE)])
    assert found.base == KERNEL_START + (16 << 20)


def test_page_tables_that_point_at_themselves(ram: Ram) -> None:
    for entry in range(512):
        ram.put(0x10000 + 8 * entry, 0x10000 | 3)
    with pytest.raises(NoKernelError):
        Kernel.find(ram.memory, [Paging(cr3=0x10000, **LONG_MODE)])


def test_page_tables_outside_memory(ram: Ram) -> None:
    ram.put(0x10000 + 8 * 511, 0xFFFFFFFFFF000 | 3)
    with pytest.raises(NoKernelError):
        locate(ram.memory, [Paging(cr3=0x10000, **LONG_MODE)])
    with pytest.raises(NoKernelError):
        locate(ram.memory, [Paging(cr3=0xFFFFFFFFFF000, **LONG_MODE)])


def test_without_paging_or_vcpus(ram: Ram) -> None:
    with pytest.raises(NoKernelError):
        locate(ram.memory, [Paging(0, 0, 0, 0)])
    with pytest.raises(NoKernelError):
        locate(ram.memory, [])
