"""Every error a user of kvmgdb can meet, each with its remedy.

Two families: :class:`KvmgdbError` and below are about the guest, the host or
the request, and are shown to the user as they are. Anything else that reaches
the command line is a bug in kvmgdb.

The message says what is wrong, in which input, in lower case; ``remedy`` says
what the user can do about it, or is empty.
"""

from __future__ import annotations

import errno
import os


class KvmgdbError(Exception):
    """Base of all errors that a user may see."""

    remedy: str = ""

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message)
        if remedy is not None:
            self.remedy = remedy

    @property
    def errno(self) -> int:
        """The number for the remote protocol's ``E NN`` reply (Linux errno)."""
        return 22


# ---- memory ---------------------------------------------------------------


class MemoryFault(KvmgdbError):
    """A guest-virtual address that the page tables do not map.

    ``level`` is that of the absent entry (5 to 1; 0 for a non-canonical
    address), ``entry`` the entry as read.
    """

    def __init__(self, address: int, level: int = 0, entry: int = 0) -> None:
        self.address = address
        self.level = level
        self.entry = entry
        if level:
            reason = f"level-{level} page-table entry is {entry:#x}"
        else:
            reason = "the address is not canonical"
        super().__init__(f"cannot access guest memory at {address:#x}: {reason}")

    @property
    def errno(self) -> int:
        return 14


class NoRamError(KvmgdbError):
    """A guest address behind which there is no RAM."""

    def __init__(self, address: int) -> None:
        self.address = address
        super().__init__(f"cannot access guest memory at {address:#x}: there is no RAM behind it")

    @property
    def errno(self) -> int:
        return 14


class ReadOnlyMemoryError(KvmgdbError):
    """A write to guest memory that cannot be written."""

    def __init__(self, address: int) -> None:
        self.address = address
        super().__init__(f"cannot write guest memory at {address:#x}: it is read-only")

    @property
    def errno(self) -> int:
        return 30


class InvalidRangeError(KvmgdbError):
    """An address range that overflows, or an argument outside its bounds."""


class HostError(KvmgdbError):
    """A system call on the host failed; ``os_error`` is its errno."""

    def __init__(self, message: str, os_error: int = 0, remedy: str | None = None) -> None:
        self.os_error = os_error
        if os_error:
            message = f"{message}: {os.strerror(os_error)}"
        if os_error == errno.EMFILE and remedy is None:
            remedy = "allow kvmgdb more open files: `ulimit -n 1024`"
        super().__init__(message, remedy)

    @property
    def errno(self) -> int:
        return self.os_error or 5


# ---- the machine ----------------------------------------------------------


class MachineError(KvmgdbError):
    """The virtual machine refused, or is not in a state to do this."""


class TargetGoneError(MachineError):
    """The virtual machine's process has exited, or closed its connection."""

    @property
    def errno(self) -> int:
        return 3


class TargetTimeoutError(MachineError):
    """The virtual machine did not answer in time."""

    @property
    def errno(self) -> int:
        return 110


class AccessDeniedError(MachineError):
    """The host does not let this user look into the virtual machine."""

    remedy = (
        "run kvmgdb as root or as the user who owns the virtual machine; where "
        "/proc/sys/kernel/yama/ptrace_scope is not 0, that user needs CAP_SYS_PTRACE"
    )

    @property
    def errno(self) -> int:
        return 13


class TargetNotFoundError(KvmgdbError):
    """No virtual machine answers to what the user named."""

    remedy = "`kvmgdb list` shows the virtual machines on this host"


class TargetBusyError(MachineError):
    """Somebody else holds what we need: another debugger, another monitor client."""

    @property
    def errno(self) -> int:
        return 16


class UnsupportedError(MachineError):
    """This backend cannot do that."""

    @property
    def errno(self) -> int:
        return 95


class BreakpointError(MachineError):
    """A breakpoint or watchpoint could not be set."""


class NoFreeBreakpointError(BreakpointError):
    """All hardware breakpoints and watchpoints of the machine are in use."""

    remedy = "delete a hardware breakpoint or watchpoint first"

    @property
    def errno(self) -> int:
        return 28


class ProtocolError(KvmgdbError):
    """A peer (monitor, stub, agent) sent something that is not its protocol."""

    @property
    def errno(self) -> int:
        return 71


# ---- what guest memory says ------------------------------------------------


class GuestDataError(KvmgdbError):
    """A structure in guest memory is not what it should be: damaged, or hostile."""


class NotFoundError(KvmgdbError):
    """The guest's kernel has no such symbol, type, member or task."""

    @property
    def errno(self) -> int:
        return 2


class NoKernelError(KvmgdbError):
    """No Linux kernel can be seen in the guest: not yet, or it is another system."""

    remedy = "if the guest is still booting, try again in a moment"


# ---- the command line -----------------------------------------------------


class ListenError(KvmgdbError):
    """The server cannot listen where it was told to."""


class UsageError(KvmgdbError):
    """What the user asked for makes no sense; exit status 2."""
