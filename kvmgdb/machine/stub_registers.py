"""Which registers a stub has, and how its ``g`` packet maps to our layout.

The stub's target description says it (GDB manual, appendix G); a stub that has
none is taken to send GDB's default amd64 order, cut off where it ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.parsers import expat

from kvmgdb.errors import MachineError, ProtocolError, UnsupportedError
from kvmgdb.machine.registers import BY_NAME, CORE, REGISTERS, SSE, Register, RegisterFile

if TYPE_CHECKING:
    from kvmgdb.machine.stub_client import StubClient

MAX_DOCUMENT = 1 << 20
MAX_DOCUMENTS = 32
MAX_REGISTERS = 4096
MAX_REGISTER_BITS = 4096

# Names of the 32-bit description for registers that we know under 64-bit names.
_ALIASES = {f"e{name}": f"r{name}" for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")}
_ALIASES["eip"] = "rip"
_ARCHITECTURES = ("i386", "i386:x86-64", "i386:intel", "i386:x86-64:intel", "i8086")


@dataclass(frozen=True, slots=True)
class StubRegister:
    """A register of the stub that is also one of ours. ``offset`` (bytes) and
    ``size`` are those in the stub's ``g`` packet, ``number`` is the stub's."""

    register: Register
    number: int
    offset: int
    size: int


class StubRegisters:
    """Translates between a stub's registers and :class:`RegisterFile`."""

    def __init__(self, registers: Iterable[StubRegister]) -> None:
        self.by_name = {entry.register.name: entry for entry in registers}
        self._copies = self._coalesce(list(self.by_name.values()))

    @staticmethod
    def _coalesce(entries: list[StubRegister]) -> list[tuple[int, int, int, list[int]]]:
        """Runs of registers that lie in one piece on both sides, each as
        (offset there, offset here, bytes, our register numbers)."""
        runs: list[tuple[int, int, int, list[int]]] = []
        for entry in sorted(entries, key=lambda e: e.offset):
            register = entry.register
            size = min(entry.size, register.size)
            if runs and entry.size == register.size:
                there, here, length, numbers = runs[-1]
                if there + length == entry.offset and here + length == register.offset:
                    runs[-1] = (there, here, length + size, [*numbers, register.number])
                    continue
            runs.append((entry.offset, register.offset, size, [register.number]))
        return runs

    def decode(self, reply: bytes, into: RegisterFile) -> None:
        """Stores a ``g`` reply (hex, ``xx`` for unavailable)."""
        if b"x" in reply:
            self._decode_slowly(reply, into)
            return
        try:
            data = bytes.fromhex(reply.decode("ascii"))
        except ValueError:
            raise ProtocolError(f"the stub answers `g` with {reply[:40]!r}") from None
        for there, here, length, numbers in self._copies:
            if there + length <= len(data):
                into.raw[here : here + length] = data[there : there + length]
                for number in numbers:
                    into.known[number] = 1

    def _decode_slowly(self, reply: bytes, into: RegisterFile) -> None:
        for entry in self.by_name.values():
            text = reply[2 * entry.offset : 2 * (entry.offset + entry.size)]
            if len(text) == 2 * entry.size and b"x" not in text:
                try:
                    into.set_bytes(entry.register, bytes.fromhex(text.decode("ascii")))
                except ValueError:
                    raise ProtocolError(f"the stub answers `g` with {reply[:40]!r}") from None


def read_stub_registers(client: StubClient) -> StubRegisters:
    """The registers of a stub. Raises UnsupportedError where it is not x86."""
    if client.features.get("qXfer:features:read") != "+":
        return StubRegisters(_default_layout())
    reader = _DescriptionReader(lambda name: read_object(client, "features", name))
    reader.read("target.xml")
    if not reader.registers:
        raise UnsupportedError("the stub describes no x86 register")
    return StubRegisters(reader.registers)


class _DescriptionReader:
    """Collects the registers of a target description and what it includes.

    Names are taken as they are written: QEMU uses the prefix of ``xi:include``
    without declaring it, which a parser that knows namespaces refuses.
    """

    def __init__(self, fetch: Callable[[str], str]) -> None:
        self.registers: list[StubRegister] = []
        self._fetch = fetch
        self._documents = 0
        self._number = 0
        self._offset = 0

    def read(self, name: str) -> None:
        self._documents += 1
        if self._documents > MAX_DOCUMENTS or not re.fullmatch(r"[\w.+-]+", name):
            raise ProtocolError(f"the stub's target description includes {name[:60]!r}")
        text: list[str] = []

        def start(tag: str, attributes: dict[str, str]) -> None:
            text.clear()
            if tag.rpartition(":")[2] == "include":
                self.read(attributes.get("href", ""))
            elif tag == "reg":
                self._add(attributes)

        def end(tag: str) -> None:
            if tag == "architecture" and "".join(text).strip() not in _ARCHITECTURES:
                found = "".join(text).strip()[:40]
                raise UnsupportedError(f"the guest is {found!r}: kvmgdb knows x86 only")

        parser = expat.ParserCreate()
        parser.StartElementHandler = start
        parser.EndElementHandler = end
        parser.CharacterDataHandler = text.append
        try:
            parser.Parse(self._fetch(name), True)
        except expat.ExpatError as error:
            raise ProtocolError(f"the stub's target description {name}: {error}") from None

    def _add(self, attributes: dict[str, str]) -> None:
        number = _integer(attributes.get("regnum"), self._number)
        bits = _integer(attributes.get("bitsize"), 0)
        if not 0 <= number <= MAX_REGISTERS or not 0 < bits <= MAX_REGISTER_BITS:
            raise ProtocolError("the stub's target description has an impossible register")
        size = (bits + 7) // 8
        name = attributes.get("name", "")
        register = BY_NAME.get(_ALIASES.get(name, name))
        if register is not None:
            self.registers.append(StubRegister(register, number, self._offset, size))
        self._number = number + 1
        self._offset += size


def _integer(text: str | None, default: int) -> int:
    try:
        return default if text is None else int(text, 0)
    except ValueError:
        found = repr(text)[:40]
        raise ProtocolError(f"the stub's target description has the number {found}") from None


def _default_layout() -> list[StubRegister]:
    return [
        StubRegister(register, register.number, register.offset, register.size)
        for register in REGISTERS
        if register.feature in (CORE, SSE)
    ]


def read_object(client: StubClient, kind: str, annex: str) -> str:
    """A whole ``qXfer`` object."""
    # Room for "l", escapes included, within what the stub can send.
    count = max(64, client.packet_size - 8)
    data = b""
    while len(data) <= MAX_DOCUMENT:
        request = f"qXfer:{kind}:read:{annex}:{len(data):x},{count:x}"
        reply = client.request(request.encode())
        if reply[:1] not in (b"l", b"m"):
            raise MachineError(f"the stub refuses to send {annex}: {reply[:40]!r}")
        data += reply[1:]
        if reply[:1] == b"l":
            return data.decode("utf-8", "replace")
        if len(reply) == 1:
            break
    raise ProtocolError(f"the stub sends {annex} without an end")
