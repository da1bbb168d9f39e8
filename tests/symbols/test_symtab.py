"""The symbol table of the file, as readelf reads it, against the kernel's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.modules import list_modules
from kvmgdb.symbols import build_module
from tests.symbols.files import readelf


def symbols(path: Path) -> list[tuple[int, int, str, str, str, str]]:
    """Address, size, type, binding, section and name of each symbol."""
    found = []
    for line in readelf(path, "--syms").splitlines():
        words = line.split()
        if len(words) == 8 and words[0][:-1].isdigit() and words[0] != "0:":
            size = int(words[2], 0)
            found.append((int(words[1], 16), size, words[3], words[4], words[6], words[7]))
    return found


def test_every_symbol_of_the_kernel_is_there(kernel: Kernel, vmlinux: Path) -> None:
    found = Counter((address, name) for address, _, _, _, _, name in symbols(vmlinux))
    expected = Counter((symbol.address, symbol.name) for symbol in kernel.symbols)
    assert expected - found == Counter()


def test_types_bindings_and_sizes(kernel: Kernel, vmlinux: Path) -> None:
    by_name = {symbol[-1]: symbol for symbol in symbols(vmlinux)}
    _, size, kind, binding, section, _ = by_name["vfs_read"]
    assert (kind, binding, section) == ("FUNC", "GLOBAL", "1")
    assert 0 < size < 4096
    address, size, kind, binding, section, _ = by_name["init_task"]
    assert (kind, binding) == ("OBJECT", "GLOBAL")
    assert address == kernel.symbol("init_task")
    assert size >= kernel.types.size("task_struct")
    # An offset, no address: nothing may be looked up as lying in it.
    assert by_name["runqueues"][2] == "OBJECT"
    assert by_name["runqueues"][4] == "ABS"


def test_symbols_of_a_module_are_in_its_own_file(kernel: Kernel, tmp_path: Path) -> None:
    module = next(module for module in list_modules(kernel) if module.name == "loop")
    built = build_module(kernel, module)
    path = tmp_path / "loop"
    path.write_bytes(built.data)
    assert built.base == module.text.base
    found = {name: (address, section) for address, _, _, _, section, name in symbols(path)}
    expected = {symbol.name: symbol.address for symbol in module.symbols}
    assert {name: address for name, (address, _) in found.items()} == expected
    assert found["loop_add"][1] == "1"
