"""``kvmgdb symbols``: the guest kernel's symbols, as a System.map has them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from kvmgdb.cli.guest import attached, note, read_list
from kvmgdb.errors import KvmgdbError
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.modules import ModuleList, list_modules
from kvmgdb.linux.native import Symbol


@click.command()
@click.argument("target", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def symbols(target: str | None, as_json: bool) -> None:
    """Print the symbols of the guest's kernel and its modules, with their addresses
    in the running guest: the form of System.map and /proc/kallsyms."""
    with attached(target) as machine:
        kernel = find_kernel(machine)
        modules = read_list(machine, lambda: list_modules(kernel))
        for symbol, module in _all(kernel, modules):
            if as_json:
                facts = {"address": symbol.address, "type": symbol.type, "name": symbol.name}
                click.echo(json.dumps({**facts, "module": module}))
            else:
                suffix = f"\t[{module}]" if module else ""
                click.echo(f"{symbol.address:016x} {symbol.type} {symbol.name}{suffix}")


def _all(kernel: Kernel, modules: ModuleList) -> Iterator[tuple[Symbol, str | None]]:
    for symbol in kernel.symbols:
        yield symbol, None
    for module in modules:
        try:
            table = module.symbols
        except KvmgdbError as error:
            note(f"the symbols of the module {module.name} cannot be read: {error}")
            continue
        for symbol in table:
            yield symbol, module.name
