"""``kvmgdb vmlinux``: the guest kernel as a file for debuggers and other tools."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import click
from rich.console import Console

from kvmgdb.cli.guest import attached, print_json, read_list
from kvmgdb.cli.terminal import echo, note
from kvmgdb.errors import HostError, NotFoundError, UsageError
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.modules import Module, list_modules
from kvmgdb.machine.interface import Machine
from kvmgdb.symbols import SymbolFile, build_module, build_vmlinux
from kvmgdb.symbols.elf import COMMENT

# Our comment stands at the beginning of a file.
_BEGINNING = 64 << 10


@click.command(
    short_help="Write the guest's kernel as an ELF file.",
    epilog="Example: kvmgdb vmlinux vm1 -o vmlinux",
)
@click.argument("target", required=False)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Where to write it."
)
@click.option("--module", "module_name", metavar="NAME", help="A loaded module's file instead.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def vmlinux(target: str | None, output: Path, module_name: str | None, as_json: bool) -> None:
    """Write the guest's kernel as an ELF file, made of what is in its memory: symbols,
    types and call frames at the addresses where it runs, with its code and constants.
    GDB, drgn, crash, perf and readelf read it. It holds as long as the guest is not
    booted again.
    """
    _check_replaceable(output)
    begin = time.monotonic()
    with (
        attached(target) as machine,
        Console(stderr=True).status("reading the guest's kernel"),
    ):
        kernel = find_kernel(machine)
        if module_name is None:
            file = build_vmlinux(kernel, contents=True)
        else:
            file = build_module(kernel, _find_module(machine, kernel, module_name), contents=True)
    _write(output, file.data)
    for warning in file.warnings:
        note(warning)
    if as_json:
        print_json(_facts(file, output))
        return
    seconds = time.monotonic() - begin
    echo(f"{output}: {file.name}, {len(file.data) / 1024:.0f} KiB, in {seconds:.1f} s")


def _find_module(machine: Machine, kernel: Kernel, name: str) -> Module:
    # The kernel has one name for both spellings (Documentation/kbuild/modules.rst).
    wanted = name.replace("-", "_")
    modules = read_list(machine, lambda: list_modules(kernel))
    for module in modules:
        if module.name.replace("-", "_") == wanted:
            return module
    raise NotFoundError(
        f"the guest has no module {name} loaded", remedy="`kvmgdb modules` lists those that it has"
    )


def _check_replaceable(path: Path) -> None:
    """A file that is there already is replaced where it is one of ours. Raises
    UsageError."""
    try:
        mode = path.stat().st_mode
        beginning = b""
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                beginning = file.read(_BEGINNING)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"cannot write {path}", error.errno or 0) from None
    if COMMENT not in beginning:
        raise UsageError(
            f"{path} is there already, and was not written by kvmgdb",
            remedy="give another name to -o, or remove it first",
        )


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: a debugger may have the old one open."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise HostError(f"cannot write {path}", error.errno or 0) from None


def _facts(file: SymbolFile, path: Path) -> dict[str, object]:
    return {
        "file": str(path),
        "name": file.name,
        "base": file.base,
        "build_id": file.build_id,
        "size": len(file.data),
        "warnings": list(file.warnings),
    }
