"""A virtual machine behind a GDB stub: ``rsp:HOST:PORT``, and the run control
of the QEMU backend."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from kvmgdb.errors import (
    BreakpointError,
    KvmgdbError,
    MachineError,
    NoRamError,
    ProtocolError,
    TargetGoneError,
    TargetTimeoutError,
    UnsupportedError,
)
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.interface import (
    Action,
    BreakpointKind,
    Machine,
    MachineInfo,
    StopEvent,
    StopReason,
)
from kvmgdb.machine.native import Memory
from kvmgdb.machine.qemu_registers import MONITOR_GROUPS, decode_info_registers
from kvmgdb.machine.registers import BY_NAME, Group, RegisterFile
from kvmgdb.machine.stub_abilities import QemuStepping, StubBreakpoints, StubMonitor
from kvmgdb.machine.stub_client import StubClient
from kvmgdb.machine.stub_registers import StubRegisters, read_stub_registers
from kvmgdb.machine.stub_vcpu import StubVcpu, parse_state

STOP_TIMEOUT = 10.0

_WATCH_KINDS = {
    b"watch": BreakpointKind.WRITE,
    b"rwatch": BreakpointKind.READ,
    b"awatch": BreakpointKind.ACCESS,
}
# GDB's numbers for the signals that QEMU uses to say why it stopped
# (gdbstub/system.c, gdb_vm_state_change).
_STOP_DETAILS = {
    3: "the guest shut down",
    6: "the VMM reports an internal error",
    14: "the guest's watchdog expired",
    17: "the VMM stopped the guest because of an I/O error",
    24: "the VMM stopped the guest to finish a migration",
}
_SIGINT, _SIGTRAP = 2, 5
_GENERAL = frozenset({Group.GENERAL})
_GENERAL_SIZE = BY_NAME["eflags"].offset + BY_NAME["eflags"].size
# How often a guest is resumed again that has stopped for nothing. An instruction
# that jumps to itself looks like one that was not executed.
_REPEATS = 3


@dataclass
class _Resumed:
    """How the guest was resumed last: the packet, the vCPUs that it let run, what
    the registers were of those that it had step, and how often it was sent again."""

    packet: bytes
    vcpus: frozenset[int]
    before: Mapping[int, RegisterFile]
    repeated: int = 0


class StubMachine(Machine):
    """A machine reached through a GDB stub and nothing else.

    The stub stops the guest when we connect: that is how stubs are. Guest
    memory is what the stub's vCPUs see (guest-virtual).
    """

    def __init__(self, address: SocketAddress) -> None:
        self.address = address
        self.vcpus: list[StubVcpu] = []
        self.registers = StubRegisters(())
        self.missing_breakpoints: frozenset[BreakpointKind] = frozenset()
        self.selected: int | None = None
        self._breakpoints = StubBreakpoints(self)
        self._physical: Memory | None = None
        self._client: StubClient | None = None
        self._running = False
        self._resumed_once = False
        self._gone_reported = False
        self._found_halted = False
        self._last_stop = StopEvent(StopReason.REQUEST)
        self._resumed = _Resumed(b"", frozenset(), {})
        self._stop_requested = False
        self._states: list[str] = []

    @classmethod
    def open(cls, address: SocketAddress) -> StubMachine:
        """Connects; the guest stands when this returns."""
        machine = cls(address)
        machine.connect_stub(address)
        client = machine.stopped_client()
        status = client.remote_command("info status") or ""
        machine._found_halted = "prelaunch" in status
        if status:
            machine.monitor = StubMonitor(machine)
        return machine

    # ---- the connection

    def connect_stub(self, address: SocketAddress) -> None:
        """Connects to the stub and learns what it has. The guest then stands."""
        client = StubClient(address)
        try:
            self._client = client
            self._last_stop = self._parse_stop(client.request(b"?"))
            threads = client.threads()
            if not self.vcpus:
                self.vcpus = [StubVcpu(self, index, name) for index, name in enumerate(threads)]
            else:
                for vcpu, name in zip(self.vcpus, threads, strict=False):
                    vcpu.thread = name
            self._last_stop = StopEvent(StopReason.REQUEST, self._last_stop.vcpu)
            self.registers = read_stub_registers(client)
            self._actions = client.request(b"vCont?")
            bits = client.request(b"qqemu.sstepbits")
            self.breakpoints = self._breakpoints
            if self._physical is None and client.request(b"qqemu.PhyMemMode") in (b"0", b"1"):
                self._physical = Memory()
                self._physical.add_callback(0, 1 << 52, self._read_physical, None)
            if bits.startswith(b"ENABLE="):
                client.drop_breakpoints(threads)
                supported = sum(int(bit) for bit in re.findall(rb"=(\d+)", bits)[:8])
                self.stepping = QemuStepping(self, supported)
        except BaseException:
            self._client = None
            client.close()
            raise

    def stopped_client(self) -> StubClient:
        """The connection, for requests that need a stopped guest."""
        if self._client is None:
            raise TargetGoneError("the virtual machine is gone")
        if self._running:
            raise MachineError("the guest is running: stop it first")
        return self._client

    def vcpu_states(self) -> list[str]:
        """For each vCPU "running", "halted" or "": what the stub says, asked once
        for each stop because GDB wants the list of threads after every step."""
        if not self._states:
            requests = [b"qThreadExtraInfo," + vcpu.thread for vcpu in self.vcpus]
            try:
                replies = self.stopped_client().request_all(requests)
            except KvmgdbError:
                return [""] * len(self.vcpus)
            self._states = [parse_state(reply) for reply in replies]
        return self._states

    def _forget(self) -> None:
        """Forgets what was true of the vCPUs while they stood."""
        self.selected = None
        self._states = []
        for vcpu in self.vcpus:
            vcpu.invalidate()

    # ---- what subclasses know better

    def complete_registers(
        self, vcpu: StubVcpu, groups: frozenset[Group], into: RegisterFile
    ) -> None:
        """Adds registers that the stub does not have, but QEMU's monitor behind it."""
        if self.monitor is not None and groups & MONITOR_GROUPS:
            text = self.monitor.command("info registers -a")
            _, heading, section = text.partition(f"CPU#{vcpu.index}\n")
            decode_info_registers(section.partition("CPU#")[0] if heading else "", into)

    def check_writable(self, vcpu: StubVcpu, gva: int, length: int) -> None:
        """Raises where a write of ``length`` bytes would stop in the middle."""

    # ---- Machine

    @property
    def memory(self) -> Memory | None:
        return self._physical

    def write_physical(self, gpa: int, data: bytes) -> None:
        client = self.stopped_client()
        if self._physical is None:
            raise UnsupportedError("guest-physical memory cannot be reached through this target")
        step = max(1, (client.packet_size - 48) // 2)
        requests = [
            b"M%x,%x:%b" % (gpa + start, len(piece), piece.hex().encode())
            for start in range(0, len(data), step)
            for piece in (data[start : start + step],)
        ]
        if any(reply != b"OK" for reply in self._request_physical(requests)):
            raise MachineError(f"the target refuses to write guest-physical memory at {gpa:#x}")

    def _read_physical(self, gpa: int, length: int) -> bytes:
        step = max(1, (self.stopped_client().packet_size - 4) // 2)
        requests = [
            b"m%x,%x" % (gpa + start, min(step, length - start)) for start in range(0, length, step)
        ]
        try:
            return b"".join(
                bytes.fromhex(reply.decode("ascii")) for reply in self._request_physical(requests)
            )
        except ValueError:
            raise NoRamError(gpa) from None

    def _request_physical(self, requests: list[bytes]) -> list[bytes]:
        """Memory requests whose addresses QEMU's stub is to take as physical.
        The mode outlives a connection: it is left in the same write."""
        replies = self.stopped_client().request_all(
            [b"Qqemu.PhyMemMode:1", *requests, b"Qqemu.PhyMemMode:0"]
        )
        return replies[1:-1]

    @property
    def reads_while_running(self) -> bool:
        return False

    @property
    def stands_by_attaching(self) -> bool:
        return not (self._running or self._resumed_once or self._found_halted)

    def info(self) -> MachineInfo:
        return MachineInfo(
            name=str(self.address),
            backend="GDB stub",
            pid=None,
            vcpus=len(self.vcpus),
            accelerator="unknown",
            state="running" if self._running else "stopped",
            notes=("guest memory is read through the stub: guest-virtual, while stopped",),
        )

    @property
    def running(self) -> bool:
        return self._running

    @property
    def event_fds(self) -> tuple[int, ...]:
        return () if self._client is None else (self._client.fileno(),)

    def stop(self) -> StopEvent:
        if not self._running:
            return self._last_stop
        self.request_stop()
        deadline = time.monotonic() + STOP_TIMEOUT
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TargetTimeoutError("the guest did not stop within 10 s")
            event = self._take_stop(self._connected().wait(remaining))
            if event is not None:
                return event

    def request_stop(self) -> None:
        if self._running:
            self._stop_requested = True
            self._connected().interrupt()

    def resume(self, actions: Mapping[int, Action]) -> None:
        client = self.stopped_client()
        if not actions:
            raise MachineError("no vCPU was told to run")
        stepping = {index for index, action in actions.items() if action is Action.STEP}
        before = {index: self.vcpus[index].read_registers(_GENERAL) for index in stepping}
        self._forget()
        if b"c" in self._actions.split(b";"):
            packet = self._vcont(actions, stepping)
        else:
            packet = self._plain_resume(client, actions, stepping)
        self._resumed = _Resumed(packet, frozenset(actions), before)
        self._stop_requested = False
        self._running = True
        self._resumed_once = True
        client.post(packet)

    def _vcont(self, actions: Mapping[int, Action], stepping: set[int]) -> bytes:
        if not stepping and len(actions) == len(self.vcpus):
            return b"vCont;c"
        parts = [b"vCont"]
        parts += [b"s:" + self.vcpus[index].thread for index in sorted(stepping)]
        parts += [b"c:" + self.vcpus[index].thread for index in sorted(actions.keys() - stepping)]
        return b";".join(parts)

    def _plain_resume(
        self, client: StubClient, actions: Mapping[int, Action], stepping: set[int]
    ) -> bytes:
        """``Hc`` with ``s`` or ``c``, for a stub without ``vCont``."""
        if len(stepping) > 1 or (not stepping and len(actions) < len(self.vcpus)):
            raise UnsupportedError("this target cannot run some vCPUs and hold others")
        if not stepping:
            client.request(b"Hc-1")
            return b"c"
        client.request(b"Hc" + self.vcpus[stepping.pop()].thread)
        return b"s"

    def poll(self) -> StopEvent | None:
        if self._client is None:
            return None
        try:
            while (packet := self._client.poll()) is not None:
                if self._running:
                    event = self._take_stop(packet)
                    if event is not None:
                        return event
                elif packet[:1] in (b"W", b"X"):
                    return self._gone("the virtual machine has ended")
        except TargetGoneError as error:
            return self._gone(str(error))
        return None

    def close(self) -> None:
        self._let_go()

    def _let_go(self) -> bool:
        """Ends the connection; False where what we set may still be there."""
        client = self._client
        if client is None:
            return True
        orderly = True
        try:
            self._leave(client)
        except TargetGoneError:
            pass
        except KvmgdbError:
            orderly = False
        self._client = None
        self._running = False
        client.close()
        if self._physical is not None:
            self._physical.close()
            self._physical = None
        return orderly

    def _leave(self, client: StubClient) -> None:
        """Removes what we set and hands the guest back."""
        self.stop()
        self.clear_breakpoints()
        if self._found_halted and not self._resumed_once:
            return
        process, dot, _ = self.vcpus[0].thread.partition(b".")
        client.post(b"D;" + process.removeprefix(b"p") if dot else b"D")
        with contextlib.suppress(TargetTimeoutError):
            client.wait(1.0)

    def clear_breakpoints(self) -> None:
        for kind, address, length in list(self._breakpoints.inserted):
            with contextlib.suppress(BreakpointError):
                self._breakpoints.remove(kind, address, length)

    # ---- stop replies

    def _connected(self) -> StubClient:
        if self._client is None:
            raise TargetGoneError("the virtual machine is gone")
        return self._client

    def _take_stop(self, packet: bytes) -> StopEvent | None:
        """Notes that the machine stopped, or None for a packet that says else."""
        if packet[:1] in (b"W", b"X"):
            return self._gone("the virtual machine has ended")
        if packet[:1] not in (b"T", b"S"):
            return None
        self._running = False
        self._forget()
        event = self._parse_stop(packet)
        if self.stepping is not None:
            # QEMU has selected the vCPU that it reports (gdb_set_stop_cpu).
            self.selected = event.vcpu
        event = self._refine(event)
        if self.stepping is not None and self._is_void(event):
            instead = self._instead_of_void(event)
            if instead is None:
                return None
            event = instead
        self._last_stop = event
        return event

    def _is_void(self, event: StopEvent) -> bool:
        """Whether nothing has happened that QEMU stops for.

        It ends the step of a vCPU that has an interrupt to look at (cpu_handle_interrupt)
        before that has executed anything; and where several vCPUs hit a breakpoint
        together, it tells of the others when the guest is resumed.
        """
        if event.reason is StopReason.STEP:
            return not self._has_stepped(event.vcpu)
        is_hit = event.reason in (StopReason.BREAKPOINT, StopReason.HARDWARE_BREAKPOINT)
        return is_hit and event.vcpu not in self._resumed.vcpus

    def _instead_of_void(self, event: StopEvent) -> StopEvent | None:
        """What there is to tell instead; None where the guest was resumed again."""
        if self._stop_requested:
            return StopEvent(StopReason.REQUEST, event.vcpu)
        for index in self._resumed.before:
            if self._has_stepped(index):
                return StopEvent(StopReason.STEP, index)
        if self._resumed.repeated == _REPEATS:
            return event
        self._resumed.repeated += 1
        self._forget()
        self._running = True
        self._connected().post(self._resumed.packet)
        return None

    def _has_stepped(self, vcpu: int) -> bool:
        before = self._resumed.before.get(vcpu)
        if before is None:
            return False
        now = self.vcpus[vcpu].read_registers(_GENERAL)
        return now.raw[:_GENERAL_SIZE] != before.raw[:_GENERAL_SIZE]

    def _instruction(self, vcpu: int) -> int | None:
        return self.vcpus[vcpu].read_registers(_GENERAL).get("rip")

    def _parse_stop(self, packet: bytes) -> StopEvent:
        """``T05thread:p01.02;watch:ffff...;`` or ``S05``."""
        try:
            signal = int(packet[1:3], 16)
        except ValueError:
            raise ProtocolError(f"the stub sends the stop reply {packet[:60]!r}") from None
        vcpu = self._last_stop.vcpu
        reason = StopReason.STEP if signal == _SIGTRAP else StopReason.EXTERNAL
        address = watch = None
        for item in packet[3:].split(b";")[:64]:
            key, _, value = item.partition(b":")
            if key == b"thread":
                vcpu = self._vcpu_of(value)
            elif key in _WATCH_KINDS:
                with contextlib.suppress(ValueError):
                    address = int(value, 16)
                    watch = _WATCH_KINDS[key]
                    reason = StopReason.WATCHPOINT
            elif key == b"swbreak":
                reason = StopReason.BREAKPOINT
            elif key == b"hwbreak":
                reason = StopReason.HARDWARE_BREAKPOINT
        detail = _STOP_DETAILS.get(signal, "")
        if detail:
            reason = StopReason.SHUTDOWN
        return StopEvent(reason, vcpu, address, watch, detail)

    def _refine(self, event: StopEvent) -> StopEvent:
        """Tells a breakpoint from the end of a step, and our own request from
        somebody else's: QEMU does not say."""
        if event.reason is StopReason.EXTERNAL and self._stop_requested:
            return StopEvent(StopReason.REQUEST, event.vcpu)
        if event.reason is not StopReason.STEP:
            return event
        rip = self._instruction(event.vcpu)
        kind = self._breakpoints.find(rip)
        if kind is None:
            return event
        if event.vcpu in self._resumed.before:
            # The step ended on a breakpoint that has not executed yet.
            return event
        if kind is BreakpointKind.SOFTWARE:
            return StopEvent(StopReason.BREAKPOINT, event.vcpu, rip)
        return StopEvent(StopReason.HARDWARE_BREAKPOINT, event.vcpu, rip)

    def _vcpu_of(self, thread: bytes) -> int:
        for vcpu in self.vcpus:
            if vcpu.thread == thread:
                return vcpu.index
        # "p01.02", "1.2" and "02" may name the same thread.
        try:
            number = int(thread.rpartition(b".")[2].lstrip(b"p"), 16)
            for vcpu in self.vcpus:
                if int(vcpu.thread.rpartition(b".")[2].lstrip(b"p"), 16) == number:
                    return vcpu.index
        except ValueError:
            pass
        return 0

    def _gone(self, detail: str) -> StopEvent | None:
        if self._client is not None:
            self._client.close()
            self._client = None
        self._running = False
        if self._gone_reported:
            return None
        self._gone_reported = True
        return StopEvent(StopReason.EXITED, detail=detail)
