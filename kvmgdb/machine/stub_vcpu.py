"""The vCPUs of a machine behind a GDB stub: registers and memory by packets."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvmgdb.errors import MachineError, NoRamError, UnsupportedError
from kvmgdb.machine.interface import Vcpu
from kvmgdb.machine.native import Paging
from kvmgdb.machine.registers import BY_NAME, STOP_GROUPS, Group, Register, RegisterFile
from kvmgdb.machine.stub_client import StubClient

if TYPE_CHECKING:
    from kvmgdb.machine.stub import StubMachine


class StubVcpu(Vcpu):
    """A vCPU that is a thread of the stub; ``thread`` is the stub's name for it."""

    def __init__(self, machine: StubMachine, index: int, thread: bytes) -> None:
        self.machine = machine
        self.index = index
        self.thread = thread
        self._registers = RegisterFile()
        self._fetched: set[Group] = set()
        self._paging: Paging | None = None

    def invalidate(self) -> None:
        """Forgets the registers: the vCPU has run, or one was written."""
        if self._fetched:
            self._registers = RegisterFile()
            self._fetched = set()
            self._paging = None

    def paging(self) -> Paging | None:
        if self._paging is None:
            self._paging = super().paging()
        return self._paging

    def read_registers(self, groups: frozenset[Group]) -> RegisterFile:
        if not self._fetched >= groups:
            client = self.machine.stopped_client()
            if not self._fetched >= STOP_GROUPS:
                reply = self._request(client, b"g")
                if reply.startswith(b"E") and len(reply) == 3:
                    raise MachineError(f"the stub refuses to read the registers: {reply!r}")
                self.machine.registers.decode(reply, self._registers)
                self._fetched |= STOP_GROUPS
            if not self._fetched >= groups:
                self._fetch_one_by_one(client, groups - self._fetched)
                self.machine.complete_registers(self, groups, self._registers)
                self._fetched |= groups
        return self._registers

    def _fetch_one_by_one(self, client: StubClient, groups: frozenset[Group]) -> None:
        """Registers that the stub has beyond its ``g`` packet's standard ones."""
        entries = [
            entry
            for name, entry in self.machine.registers.by_name.items()
            if BY_NAME[name].unit in groups and not self._registers.known[BY_NAME[name].number]
        ]
        if not entries:
            return
        requests = [b"p%x" % entry.number for entry in entries]
        for entry, reply in zip(entries, self._request_all(client, requests), strict=True):
            with contextlib.suppress(ValueError):
                data = bytes.fromhex(reply.decode("ascii"))
                if len(data) == entry.size:
                    self._registers.set_bytes(entry.register, data)

    def write_register(self, name: str, data: bytes) -> None:
        register = BY_NAME[name]
        client = self.machine.stopped_client()
        entry = self.machine.registers.by_name.get(name)
        if entry is None:
            # A debugger that restores all registers wants no more than that.
            if self.read_registers(frozenset({register.unit})).get_bytes(register) == data:
                return
            raise UnsupportedError(f"this target cannot write the register {name}")
        value = data[: entry.size].ljust(entry.size, b"\0")
        reply = self._request(client, b"P%x=%b" % (entry.number, value.hex().encode()))
        if reply == b"":
            self._write_all(client, register, value)
        elif reply != b"OK":
            raise MachineError(f"the stub refuses to write the register {name}")
        self.invalidate()
        written = self.read_registers(frozenset({register.unit})).get_bytes(register)
        if written != value[: register.size].ljust(register.size, b"\0"):
            shown = "unknown" if written is None else f"{int.from_bytes(written, 'little'):#x}"
            raise MachineError(f"the target did not take the value: {name} is now {shown}")

    def _write_all(self, client: StubClient, register: Register, value: bytes) -> None:
        """Writes one register through ``G``, for stubs without ``P``."""
        entry = self.machine.registers.by_name[register.name]
        current = self._request(client, b"g")
        start, end = 2 * entry.offset, 2 * (entry.offset + entry.size)
        if len(current) < end:
            raise UnsupportedError(f"this target cannot write the register {register.name}")
        block = current[:start] + value.hex().encode() + current[end:]
        if self._request(client, b"G" + block) != b"OK":
            raise MachineError(f"the stub refuses to write the register {register.name}")

    def read_memory(self, gva: int, length: int) -> bytes:
        client = self.machine.stopped_client()
        step = max(1, min((client.packet_size - 4) // 2, 0x10000))
        data = bytearray()
        while len(data) < length:
            address = (gva + len(data)) & (2**64 - 1)
            # One that stays within a page fails only where that page does.
            count = min(step, length - len(data), 0x1000 - (address & 0xFFF))
            reply = self._request(client, b"m%x,%x" % (address, count))
            try:
                piece = bytes.fromhex(reply.decode("ascii"))
            except ValueError:
                piece = b""
            if not piece or len(piece) > count:
                break
            data += piece
            if len(piece) < count:
                break
        if length and not data:
            raise NoRamError(gva)
        return bytes(data)

    def write_memory(self, gva: int, data: bytes) -> None:
        client = self.machine.stopped_client()
        self.machine.check_writable(self, gva, len(data))
        step = max(1, (client.packet_size - 48) // 2)
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            address = (gva + start) & (2**64 - 1)
            request = b"M%x,%x:%b" % (address, len(piece), piece.hex().encode())
            if self._request(client, request) != b"OK":
                raise NoRamError(address)

    @property
    def state(self) -> str:
        return self.machine.vcpu_states()[self.index]

    def _request(self, client: StubClient, payload: bytes) -> bytes:
        return self._request_all(client, [payload])[0]

    def _request_all(self, client: StubClient, payloads: Sequence[bytes]) -> list[bytes]:
        """Requests about this vCPU: selects it first, in the same write."""
        if self.machine.selected == self.index:
            return client.request_all(payloads)
        replies = client.request_all([b"Hg" + self.thread, *payloads])
        if replies[0] != b"OK":
            raise MachineError(f"the stub does not know vCPU {self.index} any more")
        self.machine.selected = self.index
        return replies[1:]


def parse_state(reply: bytes) -> str:
    """QEMU says "CPU#0 [halted ]"; others say nothing that we can rely on."""
    try:
        text = bytes.fromhex(reply.decode("ascii")).decode("utf-8", "replace")
    except ValueError:
        return ""
    match = re.search(r"\[(halted|running)\s*\]", text)
    return match[1] if match else ""
