"""GDB commands for a guest that is connected through kvmgdb.

Needs nothing but GDB's own Python (GDB 13 or newer)::

    (gdb) source kvmgdb-gdb.py
    (gdb) kvm            what there is

Each command leaves the selected thread and frame as they were.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gdb

_ERROR_PREFIX = "kvmgdb: "
_Invoke = Callable[[Any, str, bool], None]


class _Kvm(gdb.Command):
    """Commands for a virtual machine that is debugged through kvmgdb."""

    def __init__(self) -> None:
        super().__init__("kvm", gdb.COMMAND_USER, prefix=True)

    def invoke(self, argument: str, from_tty: bool) -> None:
        gdb.execute("help kvm")


def _monitor(line: str) -> str:
    """What the server prints for a monitor command. Raises gdb.GdbError."""
    try:
        text = gdb.execute(f"monitor {line}", to_string=True)
    except gdb.error as error:
        raise gdb.GdbError(f"not connected to kvmgdb: {error}") from None
    if text.startswith(_ERROR_PREFIX):
        raise gdb.GdbError(text.strip())
    return text


def _needs_stopped_guest(function: _Invoke) -> _Invoke:
    """Precondition of commands that read registers."""

    @functools.wraps(function)
    def checked(self: Any, argument: str, from_tty: bool) -> None:
        thread = gdb.selected_thread()
        if thread is None:
            raise gdb.GdbError("no vCPU is selected: connect with `target remote` first")
        if thread.is_running():
            raise gdb.GdbError("the guest is running: interrupt it first")
        function(self, argument, from_tty)

    return checked


def _keeps_selection(function: _Invoke) -> _Invoke:
    """Restores the selected thread and frame afterwards."""

    @functools.wraps(function)
    def restoring(self: Any, argument: str, from_tty: bool) -> None:
        thread = gdb.selected_thread()
        frame = gdb.selected_frame() if thread is not None else None
        try:
            function(self, argument, from_tty)
        finally:
            if thread is not None and thread.is_valid():
                thread.switch()
                if frame is not None and frame.is_valid():
                    frame.select()

    return restoring


def _selected_vcpu() -> str:
    """The number of the selected thread's vCPU, or nothing for a sleeping task. The
    server cannot know: GDB tells it of a thread when it asks for something new."""
    thread = gdb.selected_thread()
    name = "" if thread is None else thread.name or ""
    words = name.split()
    return words[1] if words[:1] == ["vCPU"] and len(words) > 1 else ""


def _register(name: str) -> int | None:
    """A register of the newest frame as an unsigned integer, or None where the
    machine does not know it."""
    value = gdb.newest_frame().read_register(name)
    if value.is_optimized_out:
        return None
    try:
        return int(value) & 0xFFFFFFFFFFFFFFFF
    except gdb.error:
        return None


def _hex(value: int | None) -> str:
    return "unknown" if value is None else f"{value:#x}"


class _KvmInfo(gdb.Command):
    """Show the machine behind the connection: kvm info [memory|vcpus]."""

    def __init__(self) -> None:
        super().__init__("kvm info", gdb.COMMAND_STATUS)

    def invoke(self, argument: str, from_tty: bool) -> None:
        gdb.write(_monitor(f"info {argument}".strip()))


class _KvmTranslate(gdb.Command):
    """Walk the page tables of the selected vCPU: kvm translate EXPRESSION."""

    def __init__(self) -> None:
        super().__init__("kvm translate", gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)

    @_needs_stopped_guest
    def invoke(self, argument: str, from_tty: bool) -> None:
        if not argument:
            raise gdb.GdbError("usage: kvm translate EXPRESSION")
        address = int(gdb.parse_and_eval(argument)) & 0xFFFFFFFFFFFFFFFF
        gdb.write(_monitor(f"translate {address:#x} {_selected_vcpu()}"))


class _KvmVcpus(gdb.Command):
    """Show where every vCPU is: instruction pointer, stack, mode, page tables."""

    def __init__(self) -> None:
        super().__init__("kvm vcpus", gdb.COMMAND_STATUS)

    @_needs_stopped_guest
    @_keeps_selection
    def invoke(self, argument: str, from_tty: bool) -> None:
        for thread in sorted(gdb.selected_inferior().threads(), key=lambda item: item.num):
            thread.switch()
            selector = _register("cs")
            ring = "?" if selector is None else selector & 3
            gdb.write(
                f"{thread.name or thread.num}: rip {_hex(_register('rip'))} "
                f"rsp {_hex(_register('rsp'))} ring {ring} cr3 {_hex(_register('cr3'))}\n"
            )


class _KvmIdt(gdb.Command):
    """Show the selected vCPU's interrupt handlers: kvm idt [VECTOR].

    Without a vector, all gates that are present."""

    _TYPES: ClassVar = {0xE: "interrupt", 0xF: "trap", 0x5: "task"}

    def __init__(self) -> None:
        super().__init__("kvm idt", gdb.COMMAND_DATA)

    @_needs_stopped_guest
    def invoke(self, argument: str, from_tty: bool) -> None:
        base, limit = _register("idtr_base"), _register("idtr_limit")
        if base is None or limit is None:
            raise gdb.GdbError("this machine does not tell where its IDT is")
        count = min(256, (limit + 1) // 16)
        vectors: Sequence[int] = range(count)
        if argument:
            vector = int(gdb.parse_and_eval(argument))
            if not 0 <= vector < count:
                raise gdb.GdbError(f"there is no vector {vector}: the IDT has {count}")
            vectors = [vector]
        try:
            table = gdb.selected_inferior().read_memory(base, 16 * count).tobytes()
        except gdb.MemoryError as error:
            raise gdb.GdbError(f"the IDT at {base:#x} cannot be read: {error}") from None
        for vector in vectors:
            entry = table[16 * vector : 16 * vector + 16]
            if entry[5] & 0x80 or argument:
                gdb.write(self._describe(vector, entry))

    def _describe(self, vector: int, entry: bytes) -> str:
        if not entry[5] & 0x80:
            return f"{vector:3d}  not present\n"
        handler = int.from_bytes(entry[0:2] + entry[6:12], "little")
        kind = self._TYPES.get(entry[5] & 0xF, f"type {entry[5] & 0xF:#x}")
        symbol = gdb.execute(f"info symbol {handler:#x}", to_string=True).strip()
        name = "" if symbol.startswith("No symbol") else f"  {symbol}"
        return f"{vector:3d}  {handler:#018x}  {kind:<9}  ist {entry[4] & 7}{name}\n"


for _command in (_Kvm, _KvmInfo, _KvmTranslate, _KvmVcpus, _KvmIdt):
    _command()
