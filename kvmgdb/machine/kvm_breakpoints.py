"""Breakpoints, watchpoints and steps of a machine that the agent holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvmgdb.errors import (
    BreakpointError,
    InvalidRangeError,
    KvmgdbError,
    MemoryFault,
    NoRamError,
    UnsupportedError,
)
from kvmgdb.machine.interface import BreakpointAbility, BreakpointKind, StepAbility
from kvmgdb.machine.native import Paging, Translation

if TYPE_CHECKING:
    from kvmgdb.machine.kvm import KvmMachine

# x86 has no watchpoint for reads alone; GDB then takes one for both.
_KINDS = {
    BreakpointKind.SOFTWARE: "SOFTWARE",
    BreakpointKind.HARDWARE: "HARDWARE",
    BreakpointKind.WRITE: "WRITE",
    BreakpointKind.ACCESS: "ACCESS",
}


class SoftwareBreakpoints:
    """Bytes that we planted in guest memory, by guest-physical address; they
    are invisible to whoever reads through us."""

    def __init__(self, machine: KvmMachine) -> None:
        self._machine = machine
        self._planted: dict[int, tuple[int, int, int]] = {}  # gpa: (gva, hva, original)

    @property
    def planted(self) -> bool:
        return bool(self._planted)

    def insert(self, gva: int) -> None:
        place = self._translate(gva)
        gpa = place.gpa
        hva = self._machine.hva_of(gpa)
        original = self._machine.memory.read(gpa, 1)[0]
        self._machine.agent.insert("SOFTWARE", gva, 1, gpa, hva, _is_for_programs(place))
        self._planted[gpa] = (gva, hva, original)

    def remove(self, gva: int) -> None:
        for gpa, (where, hva, _) in self._planted.items():
            if where == gva:
                self._machine.agent.remove("SOFTWARE", gva, 1, gpa, hva)
                del self._planted[gpa]
                return
        raise BreakpointError(f"there is no breakpoint at {gva:#x}")

    def is_executable(self, gva: int) -> bool:
        """False where it is mapped and what is there cannot be executed."""
        try:
            return self._translate(gva).executable
        except BreakpointError:
            return True

    def is_for_programs(self, gva: int) -> bool:
        """Whether it is mapped, and programs may execute what is there."""
        try:
            return _is_for_programs(self._translate(gva))
        except BreakpointError:
            return False

    def _translate(self, gva: int) -> Translation:
        """A kernel address is mapped on every vCPU, another perhaps on one."""
        failure: KvmgdbError = MemoryFault(gva)
        for vcpu in self._machine.vcpus:
            try:
                return self._machine.translate(vcpu.index, gva)
            except (MemoryFault, NoRamError) as error:
                failure = error
        raise BreakpointError(f"cannot set a breakpoint at {gva:#x}: {failure}")

    def mask(self, paging: Paging, gva: int, data: bytes) -> bytes:
        """``data``, read at ``gva``, with the guest's own bytes put back."""
        if not self._planted or not data:
            return data
        shown = bytearray(data)
        for gpa, offset in self._within(paging, gva, len(data)):
            shown[offset] = self._planted[gpa][2]
        return bytes(shown)

    def _within(self, paging: Paging, gva: int, length: int) -> Iterator[tuple[int, int]]:
        """(GPA, offset from ``gva``) of what is planted in a range."""
        memory = self._machine.memory
        for extent in memory.extents(paging, gva, (gva + length) % (1 << 64)):
            for gpa in self._planted:
                if extent.gpa <= gpa < extent.gpa + extent.size:
                    offset = extent.gva + (gpa - extent.gpa) - gva
                    if 0 <= offset < length:
                        yield gpa, offset

    @contextlib.contextmanager
    def lifted_around(self, paging: Paging, gva: int, length: int) -> Iterator[None]:
        """Takes planted bytes out of a range while it is written."""
        lifted = []
        if self._planted:
            lifted = [self._planted[gpa][0] for gpa, _ in self._within(paging, gva, length)]
        for where in lifted:
            self.remove(where)
        try:
            yield
        finally:
            for where in lifted:
                self.insert(where)


def _is_for_programs(place: Translation) -> bool:
    return place.user and place.executable and bool(place.entries)


class KvmBreakpoints(BreakpointAbility):
    def __init__(self, machine: KvmMachine) -> None:
        self._machine = machine
        self._inserted: set[tuple[BreakpointKind, int, int]] = set()
        self._on_data: set[int] = set()  # GVAs of software breakpoints that are none

    def supported(self) -> frozenset[BreakpointKind]:
        return frozenset(_KINDS)

    def insert(self, kind: BreakpointKind, address: int, length: int) -> None:
        self._machine.require_stopped()
        if self._machine.conflict:
            raise BreakpointError(self._machine.conflict, "let it detach first")
        if kind is BreakpointKind.SOFTWARE:
            self._insert_software(address)
        else:
            watched = self._length(kind, address, length)
            user = self._machine.software.is_for_programs(address)
            with self._explained(kind):
                self._machine.agent.insert(_KINDS[kind], address, watched, user=user)
            self._inserted.add((kind, address, length))

    def remove(self, kind: BreakpointKind, address: int, length: int) -> None:
        self._machine.require_stopped()
        if kind is BreakpointKind.SOFTWARE:
            self._remove_software(address)
        else:
            self._machine.agent.remove(_KINDS[kind], address, self._length(kind, address, length))
            self._inserted.discard((kind, address, length))

    def _insert_software(self, address: int) -> None:
        """Where code may not be executed a planted byte never is: the fetch faults. A
        debug register stops before (SDM volume 3, "Priority Among Concurrent Events").
        GDB lets functions that it calls return to such a place, on the stack."""
        if not self._machine.software.is_executable(address):
            with contextlib.suppress(KvmgdbError):
                self._machine.agent.insert("HARDWARE", address, 1)
                self._on_data.add(address)
                return
        with self._explained(BreakpointKind.SOFTWARE):
            self._machine.software.insert(address)

    @contextlib.contextmanager
    def _explained(self, kind: BreakpointKind) -> Iterator[None]:
        """GDB says no more than that it was refused."""
        try:
            yield
        except UnsupportedError:
            error = self._impossible(kind)
            self._machine.note(f"{error}: {error.remedy}")
            raise error from None

    def _remove_software(self, address: int) -> None:
        if address in self._on_data:
            self._machine.agent.remove("HARDWARE", address, 1)
            self._on_data.discard(address)
        else:
            self._machine.software.remove(address)

    @property
    def inserted(self) -> bool:
        return bool(self._inserted)

    def watching(self, address: int) -> BreakpointKind:
        """The kind of watchpoint that covers an address."""
        for kind, start, length in self._inserted:
            if kind.is_watchpoint and start <= address < start + length:
                return kind
        return BreakpointKind.WRITE

    @staticmethod
    def _impossible(kind: BreakpointKind) -> BreakpointError:
        """A KVM that interprets guest code ignores data breakpoints: writes are
        found by stepping, as long as perf events catch each step's exit. It leaves
        programs to the processor, and a breakpoint in one to the guest's kernel."""
        if not kind.is_watchpoint:
            return BreakpointError(
                "this host's KVM interprets guest code, but not that of programs: one would "
                "die of a breakpoint",
                "break in the kernel, or step the program",
            )
        if kind is BreakpointKind.ACCESS:
            return BreakpointError(
                "this host's KVM interprets guest code and cannot watch for reads",
                "watch for writes (`watch`), or break where the memory is read",
            )
        return BreakpointError(
            "this host's KVM interprets guest code: to watch memory there kvmgdb needs perf events",
            "run kvmgdb as root",
        )

    @staticmethod
    def _length(kind: BreakpointKind, address: int, length: int) -> int:
        """What the debug registers can watch (SDM volume 3, 18.2.4)."""
        if not kind.is_watchpoint:
            return 1
        if length not in (1, 2, 4, 8) or address % length:
            raise InvalidRangeError(
                f"a watchpoint covers 1, 2, 4 or 8 aligned bytes, not {length} at {address:#x}"
            )
        return length


class KvmStepping(StepAbility):
    """Whether interrupts are held back while a vCPU steps."""

    def __init__(self, block_irq: bool) -> None:
        self._supported = self.ENABLE | (self.NO_IRQ if block_irq else 0)
        self._flags = self._supported

    @property
    def action(self) -> str:
        return "STEP_BLOCK_IRQ" if self._flags & self.NO_IRQ else "STEP"

    def step_flags(self) -> int:
        return self._flags

    def supported_step_flags(self) -> int:
        return self._supported

    def set_step_flags(self, flags: int) -> None:
        self._flags = flags
