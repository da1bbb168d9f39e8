"""What a virtual machine is to kvmgdb: the interface that every backend has.

A :class:`Machine` has vCPUs, guest-physical memory, and can be stopped and
resumed. What not every backend can do is an *ability*: a small interface of its
own, reached through an attribute of the machine that is ``None`` where the
backend lacks it. The protocol server derives what it offers to GDB from which
abilities are there.

All calls are synchronous and bounded in time. A machine that runs is waited
for through :attr:`Machine.event_fds`: when one of them is readable,
:meth:`Machine.poll` takes what happened.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from kvmgdb.machine.native import Memory, Paging, Translation
from kvmgdb.machine.registers import Group, RegisterFile
from kvmgdb.machine.sampling import SamplingAbility


class Action(Enum):
    """What a vCPU does after :meth:`Machine.resume`; one that is not named stays stopped."""

    CONTINUE = "continue"
    STEP = "step"


class StopReason(Enum):
    """Why a machine stopped."""

    REQUEST = "request"  # we asked for it
    STEP = "step"  # a single step ended
    BREAKPOINT = "breakpoint"  # a software breakpoint
    HARDWARE_BREAKPOINT = "hardware breakpoint"
    WATCHPOINT = "watchpoint"
    EXTERNAL = "external"  # somebody else stopped it (its own monitor)
    SHUTDOWN = "shutdown"  # the guest shut down or failed; ``detail`` says how
    EXITED = "exited"  # the process that runs the machine is gone


class BreakpointKind(Enum):
    """The values are those of GDB's ``Z`` packets."""

    SOFTWARE = 0
    HARDWARE = 1
    WRITE = 2
    READ = 3
    ACCESS = 4

    @property
    def is_watchpoint(self) -> bool:
        return self.value >= 2


@dataclass(frozen=True)
class StopEvent:
    """The machine stopped. ``vcpu`` is the index of the vCPU it is about.

    ``watch`` is the kind of watchpoint and ``address`` the guest-virtual
    address that was watched. ``detail`` is a sentence for the user, or empty.
    """

    reason: StopReason
    vcpu: int = 0
    address: int | None = None
    watch: BreakpointKind | None = None
    detail: str = ""


@dataclass(frozen=True)
class RamRegion:
    """A range of guest-physical memory and what is known of it; sizes in bytes.

    ``source`` says how reads get there ("process", "file", "stub").
    """

    gpa: int
    size: int
    name: str
    source: str
    read_only: bool = False


@dataclass(frozen=True)
class MachineInfo:
    """What ``kvmgdb info``, ``monitor info`` and the banner of ``serve`` say."""

    name: str
    backend: str
    pid: int | None
    vcpus: int
    accelerator: str
    state: str
    notes: tuple[str, ...] = ()
    regions: tuple[RamRegion, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What to call the machine, also where it has no name."""
        return self.name or (f"PID {self.pid}" if self.pid else self.backend)


class Vcpu(ABC):
    """One virtual CPU of a machine. Registers need a stopped machine."""

    index: int

    @abstractmethod
    def read_registers(self, groups: frozenset[Group]) -> RegisterFile:
        """The registers of ``groups`` as far as this backend knows them.

        The result is shared and valid until the vCPU runs again; other groups
        may be in it too. Raises MachineError when the machine is running.
        """

    @abstractmethod
    def write_register(self, name: str, data: bytes) -> None:
        """Writes one register, little-endian. Raises UnsupportedError where
        the backend cannot write it; nothing is changed then."""

    @abstractmethod
    def read_memory(self, gva: int, length: int) -> bytes:
        """Guest-virtual memory as this vCPU sees it: the bytes up to the first
        one that cannot be read. Raises where there is not even one."""

    @abstractmethod
    def write_memory(self, gva: int, data: bytes) -> None:
        """Writes guest-virtual memory, read-only mappings included. Raises
        where any byte of the range is not mapped, before writing anything
        if the backend can know."""

    def memory_view(self) -> tuple[Memory, Paging] | None:
        """Guest-physical memory and how this vCPU translates, by which what
        :meth:`read_memory` returns can be read directly; None where it cannot."""
        return None

    def hide_planted(self, paging: Paging, gva: int, data: bytes) -> bytes:
        """``data``, read at ``gva`` by another ``paging`` than this vCPU's, with the
        guest's own bytes where a breakpoint has put others."""
        return data

    @property
    def state(self) -> str:
        """ "running", "halted" or "" where the backend does not know."""
        return ""

    def paging(self) -> Paging | None:
        """The control registers of the page walk; None where they are not known."""
        registers = self.read_registers(frozenset({Group.CONTROL}))
        values = [registers.get(name) for name in ("cr0", "cr3", "cr4", "efer")]
        known = [value for value in values if value is not None]
        return Paging(*known) if len(known) == len(values) else None


class BreakpointAbility(ABC):
    """Breakpoints and watchpoints at guest-virtual addresses."""

    @abstractmethod
    def supported(self) -> frozenset[BreakpointKind]: ...

    @abstractmethod
    def insert(self, kind: BreakpointKind, address: int, length: int) -> None:
        """Raises NoFreeBreakpointError or another BreakpointError."""

    @abstractmethod
    def remove(self, kind: BreakpointKind, address: int, length: int) -> None: ...


class StepAbility(ABC):
    """What a single step does to interrupts and timers (QEMU's sstep bits)."""

    ENABLE = 1
    NO_IRQ = 2
    NO_TIMER = 4

    @abstractmethod
    def step_flags(self) -> int: ...

    @abstractmethod
    def supported_step_flags(self) -> int: ...

    @abstractmethod
    def set_step_flags(self, flags: int) -> None: ...


class ResetAbility(ABC):
    @abstractmethod
    def reset(self) -> None:
        """Resets the machine as its reset button would. A stopped machine
        stays stopped, at its first instruction."""


class PowerAbility(ABC):
    @abstractmethod
    def power_off(self) -> None:
        """Ends the virtual machine, at once."""


class MonitorAbility(ABC):
    @abstractmethod
    def command(self, line: str, vcpu: int = 0) -> str:
        """Passes a line to the VMM's own monitor and returns what it prints."""


class Machine(ABC):
    """A virtual machine that kvmgdb has attached to.

    Attaching changes nothing in the guest; :meth:`close` leaves it as it was
    found.
    """

    vcpus: Sequence[Vcpu]

    breakpoints: BreakpointAbility | None = None
    stepping: StepAbility | None = None
    resetting: ResetAbility | None = None
    power: PowerAbility | None = None
    monitor: MonitorAbility | None = None
    sampling: SamplingAbility | None = None

    resets: int = 0
    """How often the machine was reset since it was attached to, as far as a backend is
    told; :meth:`poll` takes that in."""

    @property
    @abstractmethod
    def memory(self) -> Memory | None:
        """Guest-physical memory, also while the machine runs; None where only
        guest-virtual memory of a stopped vCPU can be reached."""

    @property
    def reads_while_running(self) -> bool:
        """Whether :attr:`memory` can be read while the machine runs."""
        return True

    @property
    def stands_by_attaching(self) -> bool:
        """Whether the machine stands because it was attached to, and for no longer."""
        return False

    @abstractmethod
    def write_physical(self, gpa: int, data: bytes) -> None:
        """Writes guest-physical memory so that the guest sees it at once, also
        where the backend has translated code from it."""

    @abstractmethod
    def info(self) -> MachineInfo: ...

    @property
    @abstractmethod
    def running(self) -> bool: ...

    @abstractmethod
    def stop(self) -> StopEvent:
        """Stops all vCPUs, and returns when they stand. Returns at once when
        they do already. Raises TargetTimeoutError or TargetGoneError."""

    @abstractmethod
    def request_stop(self) -> None:
        """Asks for a stop without waiting: :meth:`poll` brings the event."""

    @abstractmethod
    def resume(self, actions: Mapping[int, Action]) -> None:
        """Lets vCPUs (by index) run or step. Returns without waiting."""

    @property
    @abstractmethod
    def event_fds(self) -> tuple[int, ...]:
        """File descriptors that are readable when :meth:`poll` has work.
        They change only in :meth:`stop`, :meth:`resume` and :meth:`poll`."""

    @abstractmethod
    def poll(self) -> StopEvent | None:
        """Takes what has arrived, without waiting: the stop of a running
        machine, or None. An exit of the machine is reported once, as EXITED."""

    @abstractmethod
    def close(self) -> None:
        """Detaches: removes what we set, and leaves the machine running or
        stopped as it was found (or as a client last left it). Idempotent;
        raises nothing because the machine is gone."""

    def translate(self, vcpu: int, gva: int) -> Translation:
        """Walks the page tables of a vCPU. Raises MemoryFault, NoRamError, or
        UnsupportedError where physical memory cannot be reached."""
        from kvmgdb.errors import UnsupportedError

        paging = self.vcpus[vcpu].paging()
        if self.memory is None or paging is None:
            raise UnsupportedError("guest-physical memory cannot be reached through this target")
        return self.memory.translate(paging, gva)
