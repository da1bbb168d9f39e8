"""GDB's backtraces in a guest that is stopped, and what they may end in."""

from __future__ import annotations

from dataclasses import dataclass

from kvmgdb.linux.native import REGISTERS, StackCopy, UnwindEnd
from kvmgdb.linux.stacks import Unwinder
from tests.support.gdb import GdbError, GdbSession

PAGE = 4096
COPIED_PAGES = 4
# Where the code of a CPU's idle task, and that of any other task, was started.
OUTERMOST = {
    "secondary_startup_64_no_verify",
    "secondary_startup_64",
    "common_startup_64",
    "ret_from_fork",
    "ret_from_fork_asm",
}
_KERNEL_HALF = 1 << 63


@dataclass(frozen=True)
class GdbFrame:
    """A frame as GDB has it; ``function`` is None where it knows none, which also
    those have that an interrupt's registers were saved in."""

    ip: int
    function: str | None


@dataclass(frozen=True)
class GdbBacktrace:
    frames: tuple[GdbFrame, ...]
    printed: str

    @property
    def ends_in_user_mode(self) -> bool:
        return self.frames[-1].ip < _KERNEL_HALF

    def problem(self) -> str | None:
        """What is wrong with it."""
        last = self.frames[-1]
        if "Backtrace stopped" in self.printed or "warning" in self.printed:
            return "GDB has something to say"
        if last.function not in OUTERMOST and not self.ends_in_user_mode:
            return f"it ends in {last.function}"
        kernel = self.frames[:-1] if self.ends_in_user_mode else self.frames
        if any(frame.ip < _KERNEL_HALF for frame in kernel):
            return "frames follow that of user mode"
        return None


def backtrace(gdb: GdbSession, thread: int) -> GdbBacktrace:
    """That of a vCPU, by number of GDB's thread."""
    gdb.mi(f"-thread-select {thread}")
    printed = gdb.cli("backtrace")
    stack = gdb.mi("-stack-list-frames")["stack"]
    frames = tuple(GdbFrame(int(frame["addr"], 0), frame.get("func")) for frame in stack)
    return GdbBacktrace(frames, printed)


def unwound_by_us(gdb: GdbSession, unwinder: Unwinder) -> tuple[list[int], UnwindEnd]:
    """The addresses of the frames of GDB's selected thread, by our own unwinder from
    the same registers and stack, which GDB reads for it."""
    names = {name: f"r{name}" if not name.startswith("r") else name for name in REGISTERS}
    registers = {ours: gdb.integer(f"${theirs}") for ours, theirs in names.items()}
    copies = [_copy(gdb, registers["sp"])]
    while True:
        found = unwinder.tables.unwind(registers, copies)
        if found.end is not UnwindEnd.NEED_STACK or len(copies) > 8:
            return [frame.ip for frame in found.frames], found.end
        copies.append(_copy(gdb, found.address))


def _copy(gdb: GdbSession, address: int) -> StackCopy:
    start = address & -PAGE
    data = b""
    for page in range(COPIED_PAGES):
        try:
            memory = gdb.mi(f"-data-read-memory-bytes {start + page * PAGE:#x} {PAGE}")
        except GdbError:
            break
        data += bytes.fromhex(memory["memory"][0]["contents"])
    return StackCopy(start, data)
