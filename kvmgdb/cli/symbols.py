"""``kvmgdb symbols``: the guest kernel's symbols, as a System.map has them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from kvmgdb.cli.guest import attached, read_list
from kvmgdb.cli.terminal import note
from kvmgdb.errors import KvmgdbError
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.generated import GeneratedCode, list_generated
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.modules import ModuleList, list_modules
from kvmgdb.printable import printable


@click.command(
    short_help="Print the symbols of the guest's kernel.",
    epilog="Example: kvmgdb symbols vm1 | grep vfs_read",
)
@click.argument("target", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def symbols(target: str | None, as_json: bool) -> None:
    """Print the symbols of the guest's kernel and its modules, and the code that it has
    generated for BPF, ftrace and kprobes, with their addresses in the running guest: the
    form of System.map and /proc/kallsyms."""
    with attached(target) as machine:
        kernel = find_kernel(machine)
        modules = read_list(machine, lambda: list_modules(kernel))
        generated = read_list(machine, lambda: list_generated(kernel))
        for address, kind, name, module in _all(kernel, modules, generated):
            if as_json:
                facts = {"address": address, "type": kind, "name": name, "module": module}
                click.echo(json.dumps(facts))
            else:
                suffix = f"\t[{printable(module)}]" if module else ""
                click.echo(f"{address:016x} {kind} {printable(name)}{suffix}")


def _all(
    kernel: Kernel, modules: ModuleList, generated: GeneratedCode
) -> Iterator[tuple[int, str, str, str | None]]:
    """Address, type, name and module of each."""
    for symbol in kernel.symbols:
        yield symbol.address, symbol.type, symbol.name, None
    for module in modules:
        try:
            table = module.symbols
        except KvmgdbError as error:
            note(f"the symbols of the module {module.name} cannot be read: {error}")
            continue
        for symbol in table:
            yield symbol.address, symbol.type, symbol.name, module.name
    for piece in generated:
        yield piece.address, "t", piece.name, piece.owner
