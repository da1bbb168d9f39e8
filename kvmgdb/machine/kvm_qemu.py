"""What QEMU's monitor adds to a machine that the agent holds: a reset, and where
guest RAM lies on a host that does not let us read KVM's own table.

QEMU answers its monitor from a thread of its own, which a stopped vCPU does not
stop; but what changes the machine waits for the vCPUs' threads.
"""

from __future__ import annotations

import select
import time
from contextlib import closing

from kvmgdb.errors import MachineError, TargetTimeoutError
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.agent import AgentRegion
from kvmgdb.machine.holders import client_of
from kvmgdb.machine.interface import ResetAbility
from kvmgdb.machine.kvm import KvmMachine
from kvmgdb.machine.qemu_memory import ask_hva, parse_flat_view
from kvmgdb.machine.qemu_process import (
    QemuProcess,
    busy_stub_address,
    connect_qmp,
    has_client_of_later_socket,
    parse_chardev_address,
)
from kvmgdb.machine.qmp import Qmp

_RESET_SECONDS = 10.0
# SDM volume 3, 10.1.4: the address of the first instruction.
_RESET_VECTOR = 0xFFFFFFF0


def qemu_regions(process: QemuProcess) -> list[AgentRegion]:
    """Guest RAM by QEMU's own word (``info mtree -f``, ``gpa2hva``). Raises where
    its monitor cannot be reached."""
    regions = []
    with closing(connect_qmp(process)) as qmp:
        for item in parse_flat_view(qmp.hmp("info mtree -f")):
            hva = ask_hva(qmp, item.gpa)
            if hva is not None:
                size = item.end - item.gpa
                regions.append(AgentRegion(item.gpa, size, hva, 0, -1, True, item.read_only))
    return regions


def qemu_state(process: QemuProcess) -> str:
    """The machine's state by QEMU's own word (``query-status``): "running", or paused
    and what for. Raises where its monitor cannot be reached."""
    with closing(connect_qmp(process)) as qmp:
        status = qmp.execute("query-status")
    if status.get("running"):
        return "running"
    reason = str(status.get("status"))
    return "paused (by QEMU)" if reason == "paused" else f"paused (by QEMU: {reason})"


def other_debugger(process: QemuProcess) -> str:
    """Says that a debugger is connected to QEMU's own GDB stub, also to one that its
    human monitor has opened; else an empty string. Both would set what KVM stops the
    vCPUs for, and undo each other's. Raises where the process cannot be looked at."""
    stub = busy_stub_address(process)
    if stub is None and has_client_of_later_socket(process):
        with closing(connect_qmp(process)) as qmp:
            stub = _busy_stub(qmp.execute("query-chardev"), process.pid)
    if stub is None:
        return ""
    whose = f"the GDB stub of QEMU with PID {process.pid}"
    return f"a debugger is connected to {whose}{client_of(stub, process.pid)}"


def _busy_stub(chardevs: object, pid: int) -> SocketAddress | None:
    """QEMU names the character device of its stub "gdb" (gdbstub/system.c)."""
    for chardev in chardevs if isinstance(chardevs, list) else []:
        if isinstance(chardev, dict) and chardev.get("label") == "gdb":
            name = str(chardev.get("filename"))
            if not name.startswith("disconnected:"):
                return parse_chardev_address(name, pid)
    return None


class QemuKvmReset(ResetAbility):
    """Resets a QEMU by its monitor, which is connected for that time only."""

    def __init__(self, machine: KvmMachine, process: QemuProcess) -> None:
        self._machine = machine
        self._process = process

    def reset(self) -> None:
        machine = self._machine
        machine.require_stopped()
        if machine.has_breakpoints:
            # The guest runs for a moment until QEMU has paused it.
            raise MachineError(
                "the machine cannot be reset while breakpoints are set", "delete them first"
            )
        agent = machine.agent
        with closing(connect_qmp(self._process)) as qmp:
            running = qmp.execute("query-status")["running"]
            agent.insert("HARDWARE", _RESET_VECTOR)
            try:
                with machine.let_go():
                    self._reset(qmp, running)
                    if running and not select.select([agent.event_fd], [], [], _RESET_SECONDS)[0]:
                        raise TargetTimeoutError(
                            "the machine did not come to its first instruction"
                        )
            finally:
                agent.remove("HARDWARE", _RESET_VECTOR)

    @staticmethod
    def _reset(qmp: Qmp, running: bool) -> None:
        """Paused, because a machine that runs is reset at any moment."""
        if running:
            qmp.execute("stop")
        qmp.execute("system_reset")
        deadline = time.monotonic() + _RESET_SECONDS
        while not any(event.name == "RESET" for event in qmp.events):
            if time.monotonic() > deadline:
                raise TargetTimeoutError("QEMU did not reset the machine within 10 s")
            qmp.execute("query-status")
            time.sleep(0.01)
        # The event comes in the middle; this is answered when all is done.
        qmp.execute("query-status")
        if running:
            qmp.execute("cont")
