"""TARGET: how a user names a virtual machine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from kvmgdb.errors import (
    AccessDeniedError,
    TargetBusyError,
    TargetNotFoundError,
    TargetTimeoutError,
    UsageError,
)
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.holders import process_state
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.kvm import KvmMachine
from kvmgdb.machine.kvm_qemu import QemuKvmReset, other_debugger, qemu_regions, qemu_state
from kvmgdb.machine.own_vmm import own_state, vmm_path
from kvmgdb.machine.processes import VmProcess, find_vm, read_vm_process, vm_processes
from kvmgdb.machine.qemu import QemuMachine, QemuMonitorOnDemand
from kvmgdb.machine.qemu_process import QemuProcess, gdb_stub_address
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
    if re.fullmatch(r"[0-9]{1,18}", text):
        pid = int(text)
        return _process_target(_process(pid), lambda: _process(pid))
    if not text or "\0" in text:
        raise UsageError("an empty name names no virtual machine")
    return _process_target(find_vm(text), lambda: find_vm(text))


def _qmp_address(text: str) -> SocketAddress:
    if text.startswith("unix:") or text.rpartition(":")[2].isdigit():
        return SocketAddress.parse(text)
    if not text:
        raise UsageError("qmp: names no socket", "write qmp:PATH or qmp:HOST:PORT")
    return SocketAddress(path=text)


def _process(pid: int) -> VmProcess:
    process = read_vm_process(pid)
    if process is not None:
        return process
    directory = f"/proc/{pid}"
    if not os.path.exists(directory):
        raise TargetNotFoundError(f"there is no process with PID {pid}")
    if process_state(pid) == "Z":
        raise TargetNotFoundError(f"PID {pid} has ended, and waits for its parent to notice")
    if not os.access(f"{directory}/fd", os.R_OK | os.X_OK):
        raise AccessDeniedError(f"the host does not let this user look at PID {pid}")
    raise TargetNotFoundError(
        f"PID {pid} runs no virtual machine: it is no QEMU, and has no KVM machine open"
    )


def _process_target(found: VmProcess, find: Callable[[], VmProcess]) -> Target:
    name = f"{found.name} " if found.name else ""
    return Target(f"{found.vmm} {name}(PID {found.pid})", lambda: _open_process(find()))


def _open_process(process: VmProcess) -> Machine:
    if process.uses_kvm:
        if process.qemu is not None:
            with suppress(TargetNotFoundError, TargetTimeoutError):
                if conflict := other_debugger(process.qemu):
                    raise TargetBusyError(conflict, "let it detach first")
        monitor = None if process.qemu is None else QemuMonitorOnDemand(process.qemu)
        machine = KvmMachine.open(process.pid, process.name, monitor=monitor)
        if process.qemu is not None:
            machine.resetting = QemuKvmReset(machine, process.qemu)
            machine.layout = partial(qemu_regions, process.qemu)
            machine.told_state = partial(qemu_state, process.qemu)
            machine.other_debugger = partial(other_debugger, process.qemu)
        elif process.vmm == vmm_path().name:
            machine.told_state, machine.holds_in_kvm = partial(own_state, process.pid), True
        return machine
    assert process.qemu is not None
    return _open_qemu(process.qemu)


def _open_qemu(process: QemuProcess) -> Machine:
    try:
        return QemuMachine.open_process(process)
    except TargetNotFoundError:
        # Without a monitor, a stub that its command line opened will do.
        address = gdb_stub_address(process)
        if address is None:
            raise
        return StubMachine.open(address)


def _only_machine() -> Target:
    found = list(vm_processes())
    if not found:
        raise TargetNotFoundError("no virtual machine runs on this host that this user can see")
    if len(found) > 1:
        lines = "".join(f"\n  {process.pid:>8}  {process.name}" for process in found)
        raise TargetNotFoundError(
            f"{len(found)} virtual machines run on this host; name one:{lines}"
        )
    pid = found[0].pid
    return _process_target(found[0], lambda: _process(pid))
