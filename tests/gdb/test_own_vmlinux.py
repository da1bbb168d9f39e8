"""A user's own vmlinux, linked where no guest runs it: KASLR moves the kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvmgdb.demo.guest import GuestOptions, LinuxGuest
from kvmgdb.demo.kernel import Kernel
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.identity import LINKED_AT
from kvmgdb.machine.target import parse_target
from kvmgdb.symbols import build_vmlinux
from kvmgdb.symbols.debug_files import find_debug_file, read_build_id
from tests.support.gdb import GdbSession, gdb_batch
from tests.support.require import SYSTEM_GDB
from tests.support.served import WatchedGuest
from tests.support.server import ROOT, KvmgdbServer


@pytest.fixture(scope="module")
def linked(linux_kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kernel's file at the addresses where it was linked: that of a guest
    without KASLR."""
    path = tmp_path_factory.mktemp("linked") / "vmlinux"
    options = GuestOptions(name="kvmgdb-nokaslr", append="nokaslr")
    with LinuxGuest(linux_kernel, options) as guest:
        guest.wait_ready()
        machine = parse_target(str(guest.pid)).open()
        try:
            kernel = find_kernel(machine)
            assert kernel.base == LINKED_AT
            path.write_bytes(build_vmlinux(kernel).data)
        finally:
            machine.close()
    return path


@pytest.fixture
def stranger(linked: Path, tmp_path: Path) -> Path:
    """A vmlinux that differs in nothing but its build ID."""
    data = linked.read_bytes()
    build_id = bytes.fromhex(read_build_id(linked) or "")
    assert data.count(build_id) == 1
    path = tmp_path / "vmlinux"
    path.write_bytes(data.replace(build_id, bytes(len(build_id))))
    return path


def test_kaslr_is_undone(
    gdb: GdbSession, linked: Path, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    names = ("vfs_read", "init_task", "linux_banner", "jiffies_64")
    wanted = {name: guest.symbol(name) for name in names}
    gdb.cli(f"file {linked}")
    before = {name: gdb.integer(f"&{name}") for name in names}
    printed = gdb.connect(server.address)
    assert "ismatch" not in printed
    offset = wanted["vfs_read"] - before["vfs_read"]
    for name in names:
        assert gdb.integer(f"&{name}") == wanted[name] == before[name] + offset, name
    assert str(linked) in gdb.cli("info files")
    gdb.cli("break vfs_read")
    assert gdb.run_to_stop()["frame"]["func"] == "vfs_read"
    assert "do_syscall_64" in gdb.cli("backtrace")
    gdb.close()


def test_the_guests_frames_beside_a_file_without(
    gdb: GdbSession, linked: Path, guest: WatchedGuest, server: KvmgdbServer, tmp_path: Path
) -> None:
    """No call frames, as Linux's entry code has none in any file of its own."""
    wanted = guest.symbol("vfs_read")
    bare, guests = tmp_path / "bare", tmp_path / "guest.elf"
    subprocess.run(["objcopy", "--remove-section", ".debug_frame", linked, bare], check=True)
    machine = parse_target(str(guest.pid)).open()
    try:
        guests.write_bytes(build_vmlinux(find_kernel(machine)).data)
    finally:
        machine.close()
    gdb.cli(f"file {bare}")
    gdb.connect(server.address)
    gdb.cli("break vfs_read")
    gdb.run_to_stop()
    assert "do_syscall_64" not in gdb.cli("backtrace")
    gdb.cli(f"add-symbol-file {guests}")
    printed = gdb.cli("backtrace")
    assert "do_syscall_64" in printed
    assert re.search(r"<signal handler called>\s+#\d+ +0x0000[0-9a-f]+ in \S+ \(\)\s*$", printed)
    assert gdb.integer("&vfs_read") == wanted
    assert gdb.integer("sizeof(struct list_head)") == 16
    breakpoints = gdb.mi("-break-list")["BreakpointTable"]["body"]
    assert all("locations" not in breakpoint for breakpoint in breakpoints), breakpoints


def test_a_file_of_another_kernel_is_named(
    gdb_path: str, stranger: Path, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    wanted = guest.symbol("vfs_read")
    output = gdb_batch(
        gdb_path,
        f"file {stranger}",
        f"target remote {server.address}",
        "info threads",
        "print/x &vfs_read",
        "info files",
    )
    text = " ".join(output.text.split())
    assert f"ismatch between current exec-file {stranger}" in text, text
    assert "determined exec-file target:/kvmgdb/vmlinux-" in text, text
    assert "vCPU 0 [" in text
    # GDB takes the guest's own instead: no name is on the wrong code.
    assert 'Symbols from "target:/kvmgdb/vmlinux-' in text, text
    assert f"= {wanted:#x}" in text, text


@pytest.mark.parametrize("sysroot", ["/", "/nonexistent", ""])
def test_any_sysroot_will_do(
    gdb_path: str, sysroot: str, guest: WatchedGuest, server: KvmgdbServer
) -> None:
    wanted = guest.symbol("vfs_read")
    output = gdb_batch(
        gdb_path, f"set sysroot {sysroot}", f"target remote {server.address}", "print/x &vfs_read"
    )
    assert f"= {wanted:#x}" in output.text, output.text


def _kvmgdb_gdb(guest: WatchedGuest, directory: Path) -> str:
    command = [sys.executable, "-m", "kvmgdb", "gdb", str(guest.pid), "--", "-batch", "-nx"]
    result = subprocess.run(
        [*command, "-ex", "info files", "-ex", "print/x &vfs_read"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=90,
        check=False,
    )
    return result.stdout.decode(errors="replace")


def test_kvmgdb_gdb_takes_the_one_at_hand(linked: Path, guest: WatchedGuest) -> None:
    wanted = guest.symbol("vfs_read")
    text = _kvmgdb_gdb(guest, linked.parent)
    assert f"source lines come from {linked}" in text
    assert f"= {wanted:#x}" in text


def test_kvmgdb_gdb_does_not_take_a_stranger(stranger: Path, guest: WatchedGuest) -> None:
    wanted = guest.symbol("vfs_read")
    text = _kvmgdb_gdb(guest, stranger.parent)
    assert f"{stranger} is of another kernel (build ID {'0' * 40}" in text, text
    assert "target:/kvmgdb/vmlinux-" in text
    assert f"= {wanted:#x}" in text


def test_a_client_that_asks_the_servers(linked: Path, tmp_path: Path) -> None:
    """debuginfod-find as elfutils has it: it prints the path of what it fetched."""
    build_id = read_build_id(linked)
    assert build_id is not None
    program = tmp_path / "debuginfod-find"
    program.write_text(f'#!/bin/sh\n[ "$1 $2" = "debuginfo {build_id}" ] && echo {linked}\n')
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        asked = {**os.environ, "DEBUGINFOD_URLS": "http://127.0.0.1:1"}
        assert find_debug_file(build_id, None, tmp_path, asked).found == linked
        assert find_debug_file("00" * 20, None, tmp_path, asked).found is None
        asked.pop("DEBUGINFOD_URLS")
        assert find_debug_file(build_id, None, tmp_path, asked).found is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF\x02\x01",
        b"\x7fELF\x02\x01" + b"\xff" * 200,
        b"\x7fELF\x02\x01" + bytes(58),
        Path(SYSTEM_GDB).read_bytes()[:64] if Path(SYSTEM_GDB).exists() else b"",
    ],
)
def test_files_that_are_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(content)
    assert read_build_id(path) is None
    assert read_build_id(tmp_path) is None
    assert read_build_id(tmp_path / "nothing") is None
