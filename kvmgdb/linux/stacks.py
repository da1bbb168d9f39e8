"""Backtraces: of what a vCPU executes, and of a task that sleeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvmgdb.errors import KvmgdbError, NotFoundError
from kvmgdb.linux.generated import GeneratedCode, list_generated, undescribed_parts
from kvmgdb.linux.kernel import PAGE, Kernel
from kvmgdb.linux.locate import PTI_USER_BIT
from kvmgdb.linux.modules import ModuleList, list_modules
from kvmgdb.linux.native import (
    Code,
    Frame,
    FrameSource,
    StackCopy,
    SymbolTable,
    UnwindEnd,
    UnwindTables,
    Unwound,
)
from kvmgdb.linux.objects import Object
from kvmgdb.linux.orc import add_kernel, add_module
from kvmgdb.linux.self_calls import self_calling_code
from kvmgdb.linux.undescribed import undescribed_code
from kvmgdb.machine.native import Paging
from kvmgdb.machine.registers import RegisterFile

# A stack is copied a few pages at a time, upwards: that is where callers are.
_COPY_PAGES = 4
_MAX_COPIES = 32
_KERNEL_HALF = 1 << 63

_ENDS = {
    UnwindEnd.COMPLETE: None,
    UnwindEnd.USER: None,
    UnwindEnd.NEED_STACK: "the stack at {address:#x} cannot be read",
    UnwindEnd.NO_TABLE: "nothing tells how to unwind code at {address:#x}",
    UnwindEnd.UNDEFINED: "the unwind table has no rule for {address:#x}",
    UnwindEnd.NO_REGISTER: "the rule for {address:#x} needs a register that is lost",
    UnwindEnd.LOOP: "the stack does not get shorter at {address:#x}",
    UnwindEnd.FULL: "there are more frames, from {address:#x} on",
    UnwindEnd.NO_ENTRY: "code at {address:#x} was entered from nowhere that can be read",
}


@dataclass(frozen=True)
class NamedFrame:
    """A frame and what it is in. ``symbol`` is None in user mode and where nothing
    is known; ``offset`` and ``size`` are bytes from and of the symbol."""

    frame: Frame
    symbol: str | None = None
    offset: int = 0
    size: int = 0
    module: str | None = None

    def __str__(self) -> str:
        if self.symbol is None:
            return f"{self.frame.ip:#x}"
        name = f"{self.symbol}+{self.offset:#x}/{self.size:#x}"
        return f"{name} [{self.module}]" if self.module else name

    @property
    def how(self) -> str:
        """How the frame was found, for people."""
        return {
            FrameSource.REGISTERS: "registers",
            FrameSource.ORC: "ORC",
            FrameSource.ENTRY: "interrupted",
            FrameSource.FRAME_POINTER: "frame pointer",
            FrameSource.USER_REGISTERS: "user mode",
            FrameSource.STACK_TOP: "top of stack",
        }[self.frame.source]


@dataclass(frozen=True)
class Backtrace:
    """Frames, innermost first; ``broken`` says where and why the chain broke, and
    is None for one that came to its end."""

    frames: tuple[NamedFrame, ...]
    broken: str | None


class Unwinder:
    """Unwinds the stacks of one kernel and its modules."""

    def __init__(
        self,
        kernel: Kernel,
        modules: ModuleList | None = None,
        generated: GeneratedCode | None = None,
    ) -> None:
        self.kernel = kernel
        self.modules = list_modules(kernel) if modules is None else modules
        self.generated = list_generated(kernel) if generated is None else generated
        self.tables = UnwindTables()
        self.problems: list[str] = []
        try:
            add_kernel(self.tables, kernel)
        except NotFoundError as error:
            self.problems.append(f"{error}: frames by frame pointers")
        except KvmgdbError as error:
            self.problems.append(f"the kernel's ORC tables cannot be used: {error}")
        self._add_marks()
        for module in self.modules:
            try:
                add_module(self.tables, kernel, module)
            except NotFoundError:
                continue  # built without ORC
            except KvmgdbError as error:
                self.problems.append(f"module {module.name}: {error}")

    def _add_marks(self) -> None:
        if self.generated.damage is not None:
            self.problems.append(f"generated code: {self.generated.damage}")
        marks = [(code, what, 0) for code, what in undescribed_code(self.kernel.symbols)]
        for code, offset in self_calling_code(self.kernel):
            marks.append((code, Code.CALLS_ITSELF, offset))
        for code, what, detail in (*marks, *undescribed_parts(self.kernel, self.generated)):
            try:
                self.tables.mark(code, what, detail)
            except (KvmgdbError, ValueError) as error:
                self.problems.append(f"code at {code.start:#x}: {error}")

    # -- backtraces

    def of_vcpu(
        self, registers: RegisterFile, paging: Paging | None, user_frames: bool = True
    ) -> Backtrace:
        """What a stopped vCPU executes, into user mode by frame pointers."""
        start = {}
        for ours, theirs in (
            ("ip", "rip"),
            ("sp", "rsp"),
            ("bp", "rbp"),
            ("ax", "rax"),
            ("dx", "rdx"),
            ("di", "rdi"),
            ("r10", "r10"),
            ("r13", "r13"),
            ("cx", "rcx"),
        ):
            value = registers.get(theirs)
            if value is not None:
                start[ours] = value
        return self._unwind(start, self._reader(paging), user_frames, False)

    def of_sleeping(self, task: Object) -> Backtrace:
        """Where a task that does not run called the scheduler: struct
        inactive_task_frame at its saved stack pointer."""
        sp = task.member("thread").member("sp").integer()
        frame = self.kernel.object("inactive_task_frame", sp).snapshot()
        start = {
            "ip": frame.member("ret_addr").integer(),
            "bp": frame.member("bp").integer(),
            "sp": sp + frame.size,
        }
        return self._unwind(start, self._reader(None), False, True)

    def _reader(self, paging: Paging | None) -> Callable[[int], bytes]:
        """Reads one page: the kernel's half through its own tables."""
        user = paging
        if user is not None:
            user = Paging(user.cr0, user.cr3 & ~PTI_USER_BIT, user.cr4, user.efer)

        def read(address: int) -> bytes:
            tables = self.kernel.paging if address >= _KERNEL_HALF else user
            if tables is None:
                return b""
            data, _ = self.kernel.memory.read_virtual_partial(tables, address, PAGE)
            return data

        return read

    def _unwind(
        self,
        registers: dict[str, int],
        read: Callable[[int], bytes],
        user_frames: bool,
        from_call: bool,
    ) -> Backtrace:
        copies = [_copy_stack(registers["sp"], read)]
        while True:
            result = self.tables.unwind(registers, copies, user_frames, from_call)
            if result.end is not UnwindEnd.NEED_STACK or len(copies) >= _MAX_COPIES:
                break
            copy = _copy_stack(result.address, read)
            if len(copy.data) < result.address - copy.address + 8:
                break
            copies.append(copy)
        return self._name(result)

    def _name(self, result: Unwound) -> Backtrace:
        end = _ENDS[result.end]
        frames = tuple(self.name_frame(frame) for frame in result.frames)
        # User code without frame pointers is the usual case, not a broken chain.
        if frames and frames[-1].frame.ip < _KERNEL_HALF:
            end = None
        return Backtrace(frames, end.format(address=result.address) if end else None)

    def name_frame(self, frame: Frame) -> NamedFrame:
        """A return address belongs to the call before it, which may be the last
        instruction of its function."""
        if frame.ip >= _KERNEL_HALF:
            address = frame.ip if frame.exact else frame.ip - 1
            module = None
            table: SymbolTable | None = None
            if address in self.kernel.text:
                table = self.kernel.symbols
            elif (found := self.modules.at(address)) is not None:
                module = found.name
                try:
                    table = found.symbols
                except KvmgdbError:
                    table = None
            elif (piece := self.generated.at(address)) is not None:
                offset = frame.ip - piece.address
                return NamedFrame(frame, piece.name, offset, piece.size, piece.owner)
            symbol = table.at(address) if table is not None else None
            if table is not None and symbol is not None:
                size = table.size_of(symbol.index)
                return NamedFrame(frame, symbol.name, frame.ip - symbol.address, size, module)
        return NamedFrame(frame)


def _copy_stack(address: int, read: Callable[[int], bytes]) -> StackCopy:
    start = address & ~(PAGE - 1)
    data = b""
    for page in range(_COPY_PAGES):
        piece = read((start + page * PAGE) & (1 << 64) - 1)
        data += piece
        if len(piece) < PAGE:
            break
    return StackCopy(start, data)
