"""``kvmgdb run``: a machine that we start, debug and end."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmgdb.demo.initramfs import build_initramfs
from kvmgdb.demo.kernel import Kernel
from tests.support.gdb import GdbSession, gdb_batch
from tests.support.polling import wait_for
from tests.support.rsp import RawClient
from tests.support.server import KvmgdbServer, kvmgdb


@pytest.fixture
def halted(linux_kernel: Kernel) -> Iterator[KvmgdbServer]:
    """A Linux kernel that waits before its first instruction."""
    arguments = [
        *(str(linux_kernel.vmlinuz), "--initrd", str(build_initramfs()), "--accel", "tcg", "-S"),
        *("--append", "console=ttyS0 quiet", "--cpus", "2", "--memory", "256M"),
    ]
    with KvmgdbServer(*arguments, verb="run") as server:
        yield server


def _pid(server: KvmgdbServer) -> int:
    with RawClient(server.address) as client:
        client.request(b"qSupported")
        match = re.search(r"^pid +(\d+)$", client.monitor("info"), re.MULTILINE)
        assert match
        return int(match[1])


def _gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_waits_before_the_first_instruction(gdb: GdbSession, halted: KvmgdbServer) -> None:
    gdb.connect(halted.address)
    assert gdb.integer("$rip") == 0xFFF0
    assert gdb.cli("info threads").count("vCPU") == 2
    gdb.resume()
    halted.wait_printed("kvmgdb-guest: ready", 60)
    gdb.interrupt()
    assert "-level paging" in gdb.cli("monitor info vcpus")


def test_kill_ends_a_machine_that_is_ours(gdb_path: str, halted: KvmgdbServer) -> None:
    pid = _pid(halted)
    output = gdb_batch(gdb_path, f"target extended-remote {halted.address}", "kill")
    assert "killed]" in output.stdout, output.text
    assert halted.wait() == 0
    wait_for("QEMU is gone", lambda: _gone(pid))


def test_interrupt_key_ends_both(halted: KvmgdbServer) -> None:
    pid = _pid(halted)
    assert halted.signal(signal.SIGINT) == 0
    wait_for("QEMU is gone", lambda: _gone(pid))


def test_killed_server_takes_its_machine_along(halted: KvmgdbServer) -> None:
    pid = _pid(halted)
    halted.kill()
    wait_for("QEMU is gone", lambda: _gone(pid))


def test_not_a_kernel(tmp_path: Path) -> None:
    done = kvmgdb("run", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    (tmp_path / "empty").write_bytes(b"")
    done = kvmgdb("run", str(tmp_path / "empty"), "--accel", "tcg", "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "could not load kernel" in done.stderr


def test_memory_that_is_no_size(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"")
    done = kvmgdb("run", str(tmp_path / "kernel"), "--memory", "lots")
    assert done.returncode == 2
    assert "'lots' is not a memory size" in done.stderr
