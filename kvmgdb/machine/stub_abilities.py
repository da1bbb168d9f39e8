"""What a GDB stub can do beside registers and memory: breakpoints, QEMU's control
of single steps, and the monitor behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmgdb.errors import (
    BreakpointError,
    MachineError,
    NoFreeBreakpointError,
    ProtocolError,
    UnsupportedError,
)
from kvmgdb.machine.interface import (
    BreakpointAbility,
    BreakpointKind,
    MonitorAbility,
    StepAbility,
)

if TYPE_CHECKING:
    from kvmgdb.machine.stub import StubMachine


class StubBreakpoints(BreakpointAbility):
    """Breakpoints that the stub itself keeps (``Z`` packets)."""

    def __init__(self, machine: StubMachine) -> None:
        self._machine = machine
        self.inserted: set[tuple[BreakpointKind, int, int]] = set()

    def supported(self) -> frozenset[BreakpointKind]:
        return frozenset(BreakpointKind) - self._machine.missing_breakpoints

    def insert(self, kind: BreakpointKind, address: int, length: int) -> None:
        reply = self._machine.stopped_client().request(b"Z%d,%x,%x" % (kind.value, address, length))
        if reply == b"OK":
            self.inserted.add((kind, address, length))
        elif reply == b"":
            self._machine.missing_breakpoints |= {kind}
            raise UnsupportedError(f"this target has no {_kind_name(kind)}s")
        elif kind is BreakpointKind.SOFTWARE:
            raise BreakpointError(f"the target refuses a breakpoint at {address:#x}")
        else:
            used = sum(1 for entry in self.inserted if entry[0] is not BreakpointKind.SOFTWARE)
            raise NoFreeBreakpointError(
                f"the target refuses a {_kind_name(kind)} at {address:#x}: "
                f"{used} hardware breakpoints and watchpoints are set"
            )

    def remove(self, kind: BreakpointKind, address: int, length: int) -> None:
        self.inserted.discard((kind, address, length))
        reply = self._machine.stopped_client().request(b"z%d,%x,%x" % (kind.value, address, length))
        if reply != b"OK":
            raise BreakpointError(f"the target has no {_kind_name(kind)} at {address:#x}")

    def find(self, address: int | None) -> BreakpointKind | None:
        """The kind of breakpoint at an instruction address, if one is set."""
        for kind in (BreakpointKind.SOFTWARE, BreakpointKind.HARDWARE):
            if any(entry[0] is kind and entry[1] == address for entry in self.inserted):
                return kind
        return None


def _kind_name(kind: BreakpointKind) -> str:
    names = ("breakpoint", "hardware breakpoint", "watchpoint", "read watchpoint")
    return names[kind.value] if kind.value < 4 else "access watchpoint"


class QemuStepping(StepAbility):
    """QEMU's extension ``Qqemu.sstep``."""

    def __init__(self, machine: StubMachine, supported: int) -> None:
        self._machine = machine
        self._supported = supported

    def supported_step_flags(self) -> int:
        return self._supported

    def step_flags(self) -> int:
        reply = self._machine.stopped_client().request(b"qqemu.sstep")
        try:
            return int(reply, 16)
        except ValueError:
            raise ProtocolError(f"the stub answers qqemu.sstep with {reply[:40]!r}") from None

    def set_step_flags(self, flags: int) -> None:
        if self._machine.stopped_client().request(b"Qqemu.sstep=%x" % flags) != b"OK":
            raise MachineError(f"the target refuses the step flags {flags:#x}")


class StubMonitor(MonitorAbility):
    """The monitor that the stub offers through ``qRcmd``."""

    def __init__(self, machine: StubMachine) -> None:
        self._machine = machine

    def command(self, line: str, vcpu: int = 0) -> str:
        text = self._machine.stopped_client().remote_command(line)
        if text is None:
            raise UnsupportedError("this target has no monitor of its own")
        return text
