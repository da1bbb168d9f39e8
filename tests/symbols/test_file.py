"""The file as a whole: what other tools say of it, and guests that lack something."""

from __future__ import annotations

import subprocess
from functools import cached_property
from pathlib import Path

from kvmgdb.errors import GuestDataError, NotFoundError
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.modules import list_modules
from kvmgdb.linux.objects import Types
from kvmgdb.symbols import build_module, build_vmlinux
from tests.support.gdb import gdb_batch
from tests.support.require import requires
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
