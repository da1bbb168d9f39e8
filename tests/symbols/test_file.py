"""The file as a whole: what other tools say of it, and guests that lack something."""

from __future__ import annotations

import re
import subprocess
from functools import cached_property
from pathlib import Path

import pytest

from kvmgdb.demo.guest import GuestOptions
from kvmgdb.demo.kernel import Kernel as KernelFiles
from kvmgdb.errors import GuestDataError, NotFoundError
from kvmgdb.linux.attach import find_kernel, stopped
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.modules import list_modules
from kvmgdb.linux.objects import Types
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.target import parse_target
from kvmgdb.symbols import build_module, build_vmlinux
from tests.linux.fixtures import StartProbed
from tests.support.gdb import gdb_batch
from tests.support.require import requires
from tests.support.server import KvmgdbServer
from tests.symbols.files import readelf


def lint(path: Path) -> str:
    result = subprocess.run(
        ["eu-elflint", "--debuginfo", str(path)], capture_output=True, text=True, timeout=120
    )
    return (result.stdout + result.stderr).strip()


@requires("elflint")
def test_elflint_finds_no_fault(kernel: Kernel, vmlinux: Path, tmp_path: Path) -> None:
    assert lint(vmlinux) == "No errors"
    for module in list_modules(kernel):
        path = tmp_path / module.name
        built = build_module(kernel, module)
        assert built.warnings == ()
        path.write_bytes(built.data)
        assert lint(path) == "No errors"


def test_readelf_reads_all_of_it(kernel: Kernel, vmlinux: Path) -> None:
    text = readelf(vmlinux, "--headers", "--notes", "--debug-dump=abbrev,aranges,loc,frames")
    assert str(build_vmlinux(kernel).build_id) in text
    # The guest's memory is not in it.
    assert "NOBITS" in text
    info = readelf(vmlinux, "--debug-dump=info")
    assert info.count("DW_TAG_subprogram") > 20_000
    assert "damaged type" not in info


@requires("elflint")
def test_code_and_constants_are_in_it_for_tools_without_a_machine(
    machine: Machine, kernel: Kernel, tmp_path: Path
) -> None:
    path = tmp_path / "vmlinux"
    with stopped(machine):
        path.write_bytes(build_vmlinux(kernel, contents=True).data)
        for name in ("vfs_read", "linux_banner"):
            place, piece = kernel.symbol(name), tmp_path / name
            gdb_batch("gdb", f"file {path}", f"dump memory {piece} {place} {place + 64}")
            assert piece.read_bytes() == kernel.read(place, 64)
    assert lint(path) == "No errors"
    vmcoreinfo = re.findall(r"(\w+\S*=\w+)", readelf(path, "--string-dump=.vmcoreinfo"))
    assert f"SYMBOL(_stext)={kernel.symbol('_stext'):x}" in vmcoreinfo
    # It lies where it says.
    assert "KERNELOFFSET=0" in vmcoreinfo
    # crash(8) finds per-CPU data by what nm(1) says of its symbols.
    names = subprocess.run(["nm", str(path)], capture_output=True, text=True, timeout=60).stdout
    assert f"{kernel.symbol('runqueues'):016x} V runqueues" in names


def test_modules_go_with_their_kernel(
    gdb_path: str, kernel: Kernel, vmlinux: Path, tmp_path: Path
) -> None:
    module = next(module for module in list_modules(kernel) if module.name == "loop")
    path = tmp_path / "loop"
    path.write_bytes(build_module(kernel, module).data)
    add = next(module.symbols.named("loop_add"))
    output = gdb_batch(
        gdb_path,
        f"file {vmlinux}",
        f"add-symbol-file {path}",
        "ptype loop_add",
        "ptype struct loop_device",
        "p sizeof(((struct loop_device *)0)->lo_lock)",
        f"info symbol {add.address:#x}",
    ).text
    assert "type = int (int)" in output
    assert "struct gendisk *lo_disk;" in output
    # The module's types refer to the kernel's.
    assert f"= {kernel.types.size('spinlock')}" in output
    assert "loop_add in section .text" in output


@pytest.mark.slow
def test_per_cpu_data_of_a_module(
    linux_kernel: KernelFiles,
    start_probed: StartProbed,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tests.linux.probed.MODULES", ("kernel/net/core/drop_monitor.ko",))
    guest = start_probed(linux_kernel, GuestOptions(name="kvmgdb-per-cpu", memory=320))
    files = {"vmlinux": tmp_path / "vmlinux", "module": tmp_path / "drop_monitor"}
    machine = parse_target(str(guest.pid)).open()
    try:
        kernel = find_kernel(machine)
        (module,) = list_modules(kernel)
        files["vmlinux"].write_bytes(build_vmlinux(kernel).data)
        files["module"].write_bytes(build_module(kernel, module).data)
        value = next(module.symbols.named("dm_cpu_data")).address
        places = [(value + offset) & 2**64 - 1 for offset in kernel.cpu_offsets[:2]]
    finally:
        machine.close()
    with KvmgdbServer(str(guest.pid)) as server:
        output = gdb_batch(
            "gdb",
            f"file {files['vmlinux']}",
            f"add-symbol-file {files['module']}",
            f"target remote {server.address}",
            "ptype struct percpu_area_drop_monitor",
            "print/x &percpu_drop_monitor[0]->dm_cpu_data",
            "print/x &percpu_drop_monitor[1]->dm_cpu_data",
            "print percpu_drop_monitor[1]->dm_cpu_data.send_timer.flags",
            "print percpu[1]->runqueues.cpu",
        ).text
    assert "struct per_cpu_dm_data dm_cpu_data;" in output
    for place in places:
        assert f"= {place:#x}" in output
    assert "$4 = 1\n" in output, output[-300:]


class _WithoutTypes(Kernel):
    @cached_property
    def types(self) -> Types:
        raise NotFoundError("the guest's kernel has no symbol __start_BTF")


class _WithDamagedTypes(Kernel):
    @cached_property
    def types(self) -> Types:
        raise GuestDataError("the guest's data is damaged at offset 0x8")


class _WithoutUnwindTables(Kernel):
    def find_symbol(self, name: str) -> int | None:
        return None if "orc" in name else super().find_symbol(name)


def as_other(kernel: Kernel, kind: type[Kernel]) -> Kernel:
    """The same kernel, which lacks something."""
    return kind(kernel.memory, kernel.location, kernel.symbols, kernel.kallsyms)


def test_without_types(kernel: Kernel, tmp_path: Path) -> None:
    built = build_vmlinux(as_other(kernel, _WithoutTypes))
    assert built.warnings == ("no types: the guest's kernel has no symbol __start_BTF",)
    path = tmp_path / "vmlinux"
    path.write_bytes(built.data)
    assert "vfs_read" in readelf(path, "--syms")
    info = readelf(path, "--debug-dump=info")
    # Only functions that must have their name, for GDB to unwind them.
    assert "DW_TAG_structure_type" not in info
    assert "sysvec_apic_timer_interrupt" in info


def test_with_damaged_types(kernel: Kernel, tmp_path: Path) -> None:
    """Which form unwind tables have is known from the types."""
    built = build_vmlinux(as_other(kernel, _WithDamagedTypes))
    fault = "the guest's data is damaged at offset 0x8"
    assert built.warnings == (f"no call frames: {fault}", f"no types: {fault}")
    path = tmp_path / "vmlinux"
    path.write_bytes(built.data)
    assert "vfs_read" in readelf(path, "--syms")


def test_without_unwind_tables(kernel: Kernel, tmp_path: Path) -> None:
    built = build_vmlinux(as_other(kernel, _WithoutUnwindTables))
    assert built.warnings == ("no call frames: the kernel has no ORC tables",)
    path = tmp_path / "vmlinux"
    path.write_bytes(built.data)
    assert ".debug_frame" not in readelf(path, "--headers")
    assert "DW_TAG_structure_type" in readelf(path, "--debug-dump=info")


class _WithNeither(_WithoutTypes, _WithoutUnwindTables):
    pass


def test_a_local_debug_package_is_not_mixed_in(
    gdb_path: str, kernel: Kernel, vmlinux: Path, tmp_path: Path
) -> None:
    """By the build ID GDB would find one, and place its sections by guess. It looks for
    one only where a file has no debug information at all."""
    build_id = build_vmlinux(kernel).build_id or ""
    package = tmp_path / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    package.parent.mkdir(parents=True)
    vmlinux.rename(package)
    bare = tmp_path / "bare"
    bare.write_bytes(build_vmlinux(as_other(kernel, _WithNeither)).data)
    stripped = tmp_path / "stripped"
    subprocess.run(["objcopy", "--strip-debug", str(bare), str(stripped)], check=True, timeout=60)
    for path, is_mixed in ((bare, False), (stripped, True)):
        output = gdb_batch(
            gdb_path,
            f"set debug-file-directory {tmp_path}",
            f"file {path}",
            "ptype struct list_head",
            "print &init_task",
        ).text
        assert ("struct list_head *next;" in output) is is_mixed
        assert f"{kernel.symbol('init_task'):#x}" in output
