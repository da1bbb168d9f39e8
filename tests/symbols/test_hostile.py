"""Files of a guest that lies about its types and unwind tables: a real one's memory
with bytes that a generator changed. What comes of it comes soon, and tools read it."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from kvmgdb.linux.kernel import Kernel
from kvmgdb.symbols import build_vmlinux
from tests.linux.test_hostile import Liar, deceived, liar
from tests.support.gdb import gdb_batch

__all__ = ["deceived", "liar"]

ROUNDS = 6
SECONDS = 120.0
# Where struct btf_header has its fields, and its size.
_HEADER_LENGTH, _TYPE_LENGTH, _STRING_OFFSET, _STRING_LENGTH, _HEADER = 4, 12, 16, 20, 24
_TYPE = 12


def check_file(kernel: Kernel, path: Path) -> tuple[str, ...]:
    """Its warnings. GDB reads it, and knows the symbols."""
    begin = time.monotonic()
    built = build_vmlinux(kernel)
    assert time.monotonic() - begin < SECONDS
    assert len(built.data) < 200 << 20
    path.write_bytes(built.data)
    output = gdb_batch("gdb", f"file {path}", "info symbol vfs_read", "ptype struct task_struct")
    assert "vfs_read in section .text" in output.text, output.text[-500:]
    return built.warnings


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, 0),
        (_HEADER_LENGTH, 0xFFFFFFFF),
        (_TYPE_LENGTH, 0xFFFFFFFF),
        (_STRING_OFFSET, 0xFFFFFFF0),
        (_STRING_LENGTH, 0xFFFFFFFF),
    ],
)
def test_a_header_that_lies(
    liar: Liar, deceived: Kernel, tmp_path: Path, offset: int, value: int
) -> None:
    start = deceived.symbol("__start_BTF")
    liar.lie(deceived, start + offset, value.to_bytes(4, "little"))
    warnings = check_file(deceived, tmp_path / "vmlinux")
    assert any(warning.startswith("no types: ") for warning in warnings), warnings


def test_a_kind_of_type_that_nobody_knows(liar: Liar, deceived: Kernel, tmp_path: Path) -> None:
    start = deceived.symbol("__start_BTF")
    # The kind of the first type: it is the integer that others are made of.
    liar.lie(deceived, start + _HEADER + 7, b"\x1e")
    warnings = check_file(deceived, tmp_path / "vmlinux")
    assert any("the kernel has one of kind 30" in warning for warning in warnings), warnings


@pytest.mark.slow
def test_random_lies_about_types_and_frames(liar: Liar, deceived: Kernel, tmp_path: Path) -> None:
    generator = random.Random(20210615)
    start, end = deceived.symbol("__start_BTF"), deceived.symbol("__stop_BTF")
    orc = range(deceived.symbol("__start_orc_unwind"), deceived.symbol("__stop_orc_unwind"))
    for _ in range(ROUNDS):
        liar.lies.clear()
        for _ in range(200):
            at = generator.randrange(start + _HEADER, end - 4, 4)
            word = generator.choice((0, 0xFFFFFFFF, generator.randrange(1 << 17)))
            # Not what says how much follows a type: there the table would just end.
            if int.from_bytes(deceived.read(at, 4), "little") < 1 << 17:
                liar.lie(deceived, at, word.to_bytes(4, "little"))
            liar.lie(deceived, generator.choice(orc), generator.randbytes(6))
        other = Kernel(liar.memory, deceived.location, deceived.symbols, deceived.kallsyms)
        check_file(other, tmp_path / "vmlinux")
