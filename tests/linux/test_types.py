"""Types of the guest's BTF, and objects read by them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kvmgdb.errors import GuestDataError, NotFoundError
from kvmgdb.linux.attach import stopped
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.native import Kind, Type
from kvmgdb.machine.interface import Machine
from tests.support.require import requires


def test_every_type_can_be_read(kernel: Kernel) -> None:
    table = kernel.types.table
    kinds = {table.type(type_id).kind for type_id in table.ids}
    assert kinds >= {Kind.INT, Kind.STRUCT, Kind.UNION, Kind.FUNC_PROTO, Kind.VAR, Kind.DATASEC}


class _OnlyCodeHasSymbols(Kernel):
    """As without CONFIG_KALLSYMS_ALL."""

    def find_symbol(self, name: str) -> int | None:
        found = next(self.symbols.named(name), None)
        return found.address if found and found.type in "tTwW" else None


def test_types_without_a_symbol_for_them(kernel: Kernel) -> None:
    other = _OnlyCodeHasSymbols(kernel.memory, kernel.location, kernel.symbols, kernel.kallsyms)
    assert other.find_symbol("__start_BTF") is None
    assert other.find_symbol("vfs_read") is not None
    assert other.types.table.ids == kernel.types.table.ids
    assert other.types.size("task_struct") == kernel.types.size("task_struct")


def test_sizes_follow_from_members(kernel: Kernel) -> None:
    """In a C structure members do not overlap, nor reach beyond its end."""
    table = kernel.types.table
    checked = 0
    for type_id in list(table.ids)[::23]:
        found = table.type(type_id)
        if found.kind is not Kind.STRUCT:
            continue
        end = 0
        for member in table.members(type_id):
            assert member.bit_offset >= end
            size = 8 * table.size(member.type) if not member.bits else member.bits
            end = member.bit_offset + size
            checked += 1
        assert end <= 8 * found.size
    assert checked > 1000


def test_init_task(kernel: Kernel) -> None:
    task = kernel.variable("init_task", "task_struct")
    assert task.member("comm").string() == "swapper/0"
    assert task.member("pid").integer() == 0
    assert task.member("real_parent").target().address == task.address
    assert task.member("real_parent.comm").string() == "swapper/0"
    assert task.member("thread_pid.count.refs.counter").integer() > 0


def test_a_snapshot_says_the_same(kernel: Kernel) -> None:
    task = kernel.variable("init_task", "task_struct")
    copy = task.snapshot()
    for name in ("comm", "pid", "flags", "mm", "tasks", "cred", "in_execve", "prio"):
        assert copy.member(name).address == task.member(name).address
    assert copy.member("comm").string() == task.member("comm").string()
    assert copy.member("stack").integer() == task.member("stack").integer() != 0
    assert copy.member("in_execve").integer() == 0


def test_anonymous_members_and_arrays(kernel: Kernel) -> None:
    """struct page keeps its fields in unions; struct list_head is two pointers."""
    page = kernel.types.named("page")
    assert kernel.types.find_member(page.id, "mapping") is not None
    offsets = kernel.variable("init_task", "task_struct").member("comm")
    assert chr(offsets.element(0).integer()) == "s"
    assert chr(offsets.snapshot().element(1).integer()) == "w"
    for index in (-1, 16):
        with pytest.raises(NotFoundError, match=f"no element {index}"):
            offsets.element(index)


def test_enumerations(kernel: Kernel) -> None:
    states = kernel.types.enumeration("system_states")
    assert states["SYSTEM_BOOTING"] == 0
    assert "SYSTEM_RUNNING" in states


def test_names_that_are_not_there(kernel: Kernel) -> None:
    task = kernel.variable("init_task", "task_struct")
    with pytest.raises(NotFoundError, match="no type no_such_type"):
        kernel.object("no_such_type", 0)
    with pytest.raises(NotFoundError, match="task_struct has no member no_such_member"):
        task.member("no_such_member")
    with pytest.raises(GuestDataError, match="is null"):
        task.member("mm").target()


def test_a_list_that_loops_ends(machine: Machine, kernel: Kernel) -> None:
    """The list of all tasks, entered through a head that is not on it, would go
    round for ever."""
    first = kernel.variable("init_task", "task_struct").member("tasks")
    inside = kernel.object("list_head", first.address)
    outside = kernel.object("list_head", kernel.symbol("init_task"))
    outside.kernel = _Redirected(kernel, outside.address, inside.address)  # type: ignore[assignment]
    with stopped(machine):
        assert len(list(inside.list("task_struct", "tasks"))) > 10
        with pytest.raises(GuestDataError, match="does not end"):
            list(outside.list("task_struct", "tasks"))


class _Redirected:
    """A kernel in which one word is another: the list's head points into a list."""

    def __init__(self, kernel: Kernel, address: int, value: int) -> None:
        self._kernel, self._address, self._value = kernel, address, value

    def u64(self, address: int) -> int:
        return self._value if address == self._address else self._kernel.u64(address)


_CLASS = re.compile(r"^(?:struct|union) (\w+) \{$")
# "\tunsigned int               in_execve:1;          /*  1036: 1  4 */"
_MEMBER = re.compile(
    r"^\t[^\t].*?(?:\(\*(?P<function>\w+)\)\(.*\)|(?P<name>\w+)(?:\[[^;]*\])?(?::(?P<bits>\d+))?)"
    r"(?: __attribute__.*)?;\s*/\*\s+(?P<offset>\d+)(?::\s*(?P<bit>\d+))?\s+\d+ \*/$"
)


def _pahole(*arguments: str | Path) -> str:
    command = ["pahole", "-F", "btf", *map(str, arguments)]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=120, errors="replace"
    ).stdout


@requires("pahole")
def test_sizes_and_offsets_are_what_pahole_says(kernel: Kernel, tmp_path: Path) -> None:
    start, end = kernel.symbol("__start_BTF"), kernel.symbol("__stop_BTF")
    file = tmp_path / "btf"
    file.write_bytes(kernel.read(start, end - start))
    table = kernel.types.table
    by_name: dict[str, list[Type]] = {}
    for type_id in table.ids:
        found = table.type(type_id)
        if found.kind in (Kind.STRUCT, Kind.UNION) and found.name:
            by_name.setdefault(found.name, []).append(found)
    sizes = [line.split("\t") for line in _pahole("--sizes", file).splitlines()]
    for name, size, _ in sizes:
        assert int(size) in {found.size for found in by_name[name]}, name
    assert len(sizes) > 5000

    compared = bit_fields = 0
    current = None
    for line in _pahole(file).splitlines():
        if match := _CLASS.match(line):
            listed = by_name[match[1]]
            current = listed[0] if len(listed) == 1 else None
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _MEMBER.match(line)):
            member = table.find_member(current.id, match["name"] or match["function"])
            assert member is not None, (current.name, line)
            expected = 8 * int(match["offset"]) + int(match["bit"] or 0)
            assert member.bit_offset == expected, (current.name, line)
            assert member.bits == int(match["bits"] or 0), (current.name, line)
            compared += 1
            bit_fields += member.bits > 0
    assert compared > 30_000
    assert bit_fields > 500
