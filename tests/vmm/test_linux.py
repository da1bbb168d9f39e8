"""What the commands say about stock Linux in our own VMM is what it is."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmgdb.demo.kernel import Kernel as KernelFiles
from tests.linux.commands import answer, kvmgdb, log_of
from tests.linux.test_symbols import own_symbols
from tests.support.require import requires
from tests.vmm.transplant import Transplanted, linux_in_own_vmm
from tests.vmm.vmm import Vmm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def linux(linux_kernel: KernelFiles) -> Iterator[Transplanted]:
    with linux_in_own_vmm(linux_kernel) as guest:
        yield guest


def test_info(linux: Transplanted) -> None:
    facts = answer(linux.pid, "info")
    assert facts["machine"]["backend"] == "kvmgdb-vmm"
    kernel = facts["kernel"]
    assert kernel["banner"] == linux.source.text("/proc/version").strip()
    assert kernel["command_line"] == linux.source.text("/proc/cmdline").strip()
    assert kernel["state"] == "running"
    assert kernel["disagreements"] == []


def test_ps(linux: Transplanted) -> None:
    tasks = {task["pid"]: task for task in answer(linux.pid, "ps")["tasks"]}
    for pid, files in linux.source.processes().items():
        if pid > 1 and not tasks.get(pid, {"kernel": True})["kernel"]:
            assert files.stat.startswith(f"{pid} ({tasks[pid]['comm']}) {tasks[pid]['state']} ")
    names = {task["comm"] for task in tasks.values()}
    assert {"init", "in-pipe", "in wait", "compute", "kthreadd"} <= names


def test_dmesg(linux: Transplanted) -> None:
    said = [line.partition("] ")[2] for line in linux.source.text("log").splitlines()]
    found = [line for record in log_of(linux.pid) for line in record["text"].split("\n")]
    assert found[: len(said)] == said


def test_modules(linux: Transplanted) -> None:
    found = [
        f"{module['name']} {module['size']} {module['address']:#x}"
        for module in answer(linux.pid, "modules")["modules"]
    ]
    lines = [line.split() for line in linux.source.text("/proc/modules").splitlines()]
    assert found == [f"{words[0]} {words[1]} {words[5]}" for words in lines]


def test_backtrace(linux: Transplanted) -> None:
    stacks = answer(linux.pid, "backtrace", "--all-tasks")["stacks"]
    assert stacks[0]["broken"] is None
    assert [frame["symbol"] for frame in stacks[0]["frames"] if frame["symbol"]] == linux.trace
    asleep = {
        (stack["task"]["comm"], frame["symbol"])
        for stack in stacks[1:]
        for frame in stack["frames"]
    }
    assert {("in-pipe", "pipe_read"), ("in wait", "kernel_wait4")} <= asleep


def test_symbols(linux: Transplanted) -> None:
    own = [f"{address:016x} {kind} {name}" for address, kind, name in own_symbols(linux.source)]
    assert kvmgdb(linux.pid, "symbols").stdout.splitlines()[: len(own)] == own


def _uncompressed(kernel: KernelFiles) -> bytes:
    """The ELF inside a bzImage (Documentation/arch/x86/boot.rst: payload_offset)."""
    image = kernel.vmlinuz.read_bytes()
    sectors, (offset, length) = image[0x1F1], struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    # The last four bytes are its length, which lz4 knows nothing of.
    payload = image[start : start + length - 4]
    return subprocess.run(
        ["lz4", "-dc"], input=payload, stdout=subprocess.PIPE, check=True, timeout=60
    ).stdout


@requires("lz4")
def test_a_kernel_that_is_booting(linux_kernel: KernelFiles, tmp_path: Path) -> None:
    """It prints its memory map within a few million instructions, and has neither
    tasks nor modules then."""
    image = tmp_path / "vmlinux"
    image.write_bytes(_uncompressed(linux_kernel))
    words = "earlyprintk=ttyS0 nokaslr nosmap clearcpuid=popcnt"
    with Vmm("-m", "256M", "--protocol", "linux", "-a", words, image) as vmm:
        vmm.wait_output(b"BIOS-e820: [mem 0x0000000000100000")
        vmm.command("stop")
        pid = vmm.process.pid
        facts = answer(pid, "info")["kernel"]
        assert facts["state"] == "booting"
        assert facts["release"] == linux_kernel.release
        assert facts["kaslr_offset"] == 0
        log = [record["text"] for record in log_of(pid)]
        printed = [line.partition("] ")[2] for line in vmm.output.decode().splitlines()[:3]]
        assert log[:3] == printed
        assert answer(pid, "ps")["tasks"] == []
        assert answer(pid, "modules")["modules"] == []
        (stack,) = answer(pid, "backtrace")["stacks"]
        names = [frame["symbol"] for frame in stack["frames"]]
        assert stack["broken"] is None
        assert names[-1] == "secondary_startup_64_no_verify"
        assert "start_kernel" in names
