"""The kernel's symbols, compared with its own /proc/kallsyms."""

from __future__ import annotations

import pytest

from kvmgdb.errors import NotFoundError
from kvmgdb.linux.kernel import Kernel
from tests.linux.probed import ProbedGuest


def own_symbols(guest: ProbedGuest) -> list[tuple[int, str, str]]:
    """The lines of /proc/kallsyms that are of the kernel itself."""
    lines = (line.split() for line in guest.text("/proc/kallsyms").splitlines())
    return [(int(words[0], 16), words[1], words[2]) for words in lines if len(words) == 3]


def test_all_symbols_are_the_guests_own(probed_guest: ProbedGuest, kernel: Kernel) -> None:
    expected = own_symbols(probed_guest)
    assert len(expected) > 50_000
    found = [(symbol.address, symbol.type, symbol.name) for symbol in kernel.symbols]
    assert found == expected


def test_kernel_is_moved_and_found_at_its_text(kernel: Kernel) -> None:
    assert kernel.base == kernel.symbol("_text")
    assert kernel.base % (2 << 20) == 0


def test_lookup_by_address_and_name(probed_guest: ProbedGuest, kernel: Kernel) -> None:
    address = probed_guest.linux.symbol("schedule")
    assert kernel.symbol("schedule") == address
    found = kernel.symbol_at(address + 5)
    assert found is not None
    assert found.name == "schedule"
    assert kernel.symbol_at(kernel.base - 1) is None
    assert kernel.symbol_at(0x1000) is None
    with pytest.raises(NotFoundError, match="no symbol no_such_symbol"):
        kernel.symbol("no_such_symbol")


def test_names_that_occur_more_than_once(probed_guest: ProbedGuest, kernel: Kernel) -> None:
    by_name: dict[str, list[int]] = {}
    for address, _, name in own_symbols(probed_guest):
        by_name.setdefault(name, []).append(address)
    repeated = [name for name, addresses in by_name.items() if len(addresses) > 2]
    assert len(repeated) > 100
    for name in repeated:
        assert [symbol.address for symbol in kernel.symbols.named(name)] == by_name[name]
