"""Fixtures: a paused guest that costs little."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machine.rom_guest import RomGuest
from tests.support.require import demand


@pytest.fixture(scope="module")
def rom_guest() -> Iterator[RomGuest]:
    """A guest that the tests of a module share, paused before its first instruction."""
    demand(["qemu", "cc"])
    with RomGuest() as guest:
        yield guest
