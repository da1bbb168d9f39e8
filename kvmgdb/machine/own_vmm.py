"""kvmgdb's own small VMM (``native/vmm``), as ``kvmgdb run`` starts it.

To the agent it is a VMM like any other. Its control socket (described in
``native/vmm/control.h``) adds what KVM cannot tell: that a machine waits before
its first instruction, and why one that failed stands still.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvmgdb.errors import (
    KvmgdbError,
    MachineError,
    ProtocolError,
    TargetGoneError,
    TargetNotFoundError,
    TargetTimeoutError,
)
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.interface import Action, PowerAbility, ResetAbility, StopEvent, StopReason
from kvmgdb.machine.kvm import KvmMachine

_TIMEOUT = 5.0
_MAX_LINE = 8192


def vmm_path() -> Path:
    """The VMM's program: what KVMGDB_VMM names, the one installed beside this
    package, or the one built in a checkout."""
    if named := os.environ.get("KVMGDB_VMM"):
        return Path(named)
    package = Path(__file__).resolve().parent.parent
    installed = package / "bin" / "kvmgdb-vmm"
    built = package.parent / "native" / "vmm" / "build" / "kvmgdb-vmm"
    return installed if installed.exists() else built


class VmmControl:
    """A client of the control socket. Raises TargetGoneError once the VMM ends."""

    def __init__(self, path: Path) -> None:
        self._socket = SocketAddress(path=str(path)).connect(_TIMEOUT)
        self._buffer = b""
        self._events: list[dict[str, Any]] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def command(self, word: str) -> dict[str, Any]:
        """Sends one of cont, stop, reset, status, quit; returns the status that
        the VMM answers with. Raises MachineError where it refuses."""
        deadline = time.monotonic() + _TIMEOUT
        self._socket.settimeout(_TIMEOUT)
        try:
            self._socket.sendall(word.encode() + b"\n")
        except OSError:
            raise TargetGoneError("the virtual machine has ended") from None
        while True:
            line = self._line(deadline)
            if line is None:
                raise TargetTimeoutError(f"the VMM does not answer `{word}`")
            if "event" in line:
                self._events.append(line)
            elif line.get("ok"):
                return line
            else:
                raise MachineError(f"the VMM refuses `{word}`: {line.get('error')}")

    def events(self) -> list[dict[str, Any]]:
        """The changes of state that have been told since the last call."""
        while (line := self._line(time.monotonic())) is not None:
            self._events.append(line)
        events, self._events = self._events, []
        return events

    def wait_state(self, *states: str) -> dict[str, Any]:
        """Waits until the machine is in one of ``states``."""
        deadline = time.monotonic() + _TIMEOUT
        while (status := self.command("status"))["state"] not in states:
            if time.monotonic() > deadline:
                raise TargetTimeoutError(
                    f"the VMM is {status['state']}, not {' or '.join(states)}, after {_TIMEOUT} s"
                )
            time.sleep(0.002)
        return status

    def close(self) -> None:
        self._socket.close()

    def _line(self, deadline: float) -> dict[str, Any] | None:
        while b"\n" not in self._buffer:
            try:
                self._socket.settimeout(max(0.0, deadline - time.monotonic()))
                piece = self._socket.recv(4096)
            except (TimeoutError, BlockingIOError):
                return None
            except OSError:
                piece = b""
            if not piece or len(self._buffer) > _MAX_LINE:
                raise TargetGoneError("the virtual machine has ended")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ProtocolError(f"the VMM's control socket sends {line[:40]!r}")
        return value


def own_state(pid: int) -> str:
    """The state of the machine of our own VMM ``pid``, by its own word. Raises where
    its control socket cannot be reached."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        path = os.fsdecode(words[words.index(b"--control") + 1])
    except (OSError, ValueError, IndexError):
        raise TargetNotFoundError(f"the VMM {pid} names no control socket") from None
    control = VmmControl(Path(f"/proc/{pid}/cwd", path))
    try:
        state = str(control.command("status").get("state"))
    finally:
        control.close()
    return state if state == "running" else f"paused (by its VMM: {state})"


class _OwnReset(ResetAbility):
    def __init__(self, machine: OwnMachine) -> None:
        self._machine = machine

    def reset(self) -> None:
        self._machine.system_reset()


class _OwnPower(PowerAbility):
    def __init__(self, control: VmmControl) -> None:
        self._control = control

    def power_off(self) -> None:
        self._control.command("quit")


class OwnMachine(KvmMachine):
    """A machine of our own VMM."""

    control: VmmControl
    _resumed_once = False
    _found_running = True
    _fault: dict[str, Any] | None = None

    @classmethod
    def open_own(cls, pid: int, control_path: Path, name: str) -> OwnMachine:
        """Attaches to the VMM ``pid``. One that waits before its first
        instruction stands there, under our control, when this returns."""
        control = VmmControl(control_path)
        try:
            machine = cls.open(pid, name)
        except BaseException:
            control.close()
            raise
        assert isinstance(machine, OwnMachine)
        machine.control = control
        machine.resetting = _OwnReset(machine)
        machine.power = _OwnPower(control)
        try:
            machine._take_over(control.command("status"))
        except BaseException:
            machine.close()
            raise
        return machine

    def _take_over(self, status: dict[str, Any]) -> None:
        """A machine that the VMM holds is held by us instead: its vCPUs are
        stopped first, then the VMM is told to let them go."""
        state = status["state"]
        self._found_running = state == "running"
        if state == "faulted":
            self._note_fault(status["fault"])
        elif state in ("paused", "stopped"):
            super().stop()
            self.control.command("cont")

    def _note_fault(self, fault: dict[str, Any]) -> StopEvent:
        super().stop()
        self._fault = fault
        vcpu = int(fault.get("vcpu", 0))
        event = StopEvent(
            StopReason.SHUTDOWN, vcpu if vcpu < len(self.vcpus) else 0, detail=str(fault["text"])
        )
        self._note_stop(event)
        return event

    def resume(self, actions: Mapping[int, Action]) -> None:
        fault, self._fault = self._fault, None
        if fault is not None and not fault.get("resumable"):
            self._fault = fault
            raise MachineError(
                f"the guest cannot go on: {fault['text']}", "`monitor reset` starts it again"
            )
        if fault is not None:
            self.control.command("cont")
        super().resume(actions)
        self._resumed_once = self._resumed_once or Action.CONTINUE in actions.values()

    @property
    def event_fds(self) -> tuple[int, ...]:
        return (*super().event_fds, self.control.fileno()) if not self._closed else ()

    def poll(self) -> StopEvent | None:
        if self._closed:
            return None
        try:
            events = self.control.events()
        except TargetGoneError as error:
            return self._gone(str(error))
        if self._running and events and events[-1].get("state") == "faulted":
            return self._note_fault(events[-1]["fault"])
        return super().poll()

    def system_reset(self) -> None:
        """Starts the machine again; it stands on its first instruction."""
        self.require_stopped()
        self._fault = None
        if self.control.command("status")["state"] == "running":
            self.control.command("stop")
        self.agent.resume(None)
        self._running = True
        self.control.wait_state("stopped", "faulted", "paused")
        self.control.command("reset")
        self.control.wait_state("paused")
        super().stop()
        self.control.command("cont")

    def close(self) -> None:
        if self._closed:
            return
        if not self._found_running and not self._resumed_once and self._fault is None:
            # Found waiting and never let go: it waits on.
            try:
                self.control.command("stop")
            except KvmgdbError:
                self.notes.append("the VMM did not take the machine back")
        super().close()
        self.control.close()
