"""TARGET: how a user names a virtual machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvmgdb.errors import TargetNotFoundError, UsageError
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.qemu import QemuMachine
from kvmgdb.machine.qemu_process import (
    QemuProcess,
    find_qemu,
    gdb_stub_address,
    qemu_processes,
    read_qemu_process,
)
from kvmgdb.machine.stub import StubMachine


@dataclass(frozen=True)
class Target:
    """A machine that can be attached to, now or again later.

    ``stops_guest``: attaching stops the guest (a bare GDB stub does that).
    """

    description: str
    open: Callable[[], Machine]
    stops_guest: bool = False


def parse_target(text: str | None) -> Target:
    """A PID, a name, ``qmp:ADDRESS``, ``rsp:HOST:PORT``, or None for the only VM.

    A name is looked up each time the target is opened, so that a machine which
    is started again under the same name is found again. Raises UsageError or
    TargetNotFoundError.
    """
    if text is None:
        return _only_machine()
    if text.startswith("rsp:"):
        address = SocketAddress.parse(text.removeprefix("rsp:"))
        return Target(f"GDB stub at {address}", lambda: StubMachine.open(address), True)
    if text.startswith("qmp:"):
        address = _qmp_address(text.removeprefix("qmp:"))
        return Target(f"QEMU at {address}", lambda: QemuMachine.open_qmp(address))
    if text.isascii() and text.isdigit():
        pid = int(text)
        return _process_target(_process(pid), lambda: _process(pid))
    if not text or "\0" in text:
        raise UsageError("an empty name names no virtual machine")
    return _process_target(find_qemu(text), lambda: find_qemu(text))


def _qmp_address(text: str) -> SocketAddress:
    if text.startswith("unix:") or text.rpartition(":")[2].isdigit():
        return SocketAddress.parse(text)
    if not text:
        raise UsageError("qmp: names no socket", "write qmp:PATH or qmp:HOST:PORT")
    return SocketAddress(path=text)


def _process(pid: int) -> QemuProcess:
    process = read_qemu_process(pid)
    if process is None:
        raise TargetNotFoundError(f"there is no QEMU with PID {pid}")
    return process


def _process_target(found: QemuProcess, find: Callable[[], QemuProcess]) -> Target:
    name = f"{found.name} " if found.name else ""
    return Target(f"QEMU {name}(PID {found.pid})", lambda: _open_process(find()))


def _open_process(process: QemuProcess) -> Machine:
    try:
        return QemuMachine.open_process(process)
    except TargetNotFoundError:
        # Without a monitor, a stub that its command line opened will do.
        address = gdb_stub_address(process)
        if address is None:
            raise
        return StubMachine.open(address)


def _only_machine() -> Target:
    found = list(qemu_processes())
    if not found:
        raise TargetNotFoundError("no virtual machine runs on this host that this user can see")
    if len(found) > 1:
        lines = "".join(f"\n  {process.pid:>8}  {process.name}" for process in found)
        raise TargetNotFoundError(
            f"{len(found)} virtual machines run on this host; name one:{lines}"
        )
    pid = found[0].pid
    return _process_target(found[0], lambda: _process(pid))
