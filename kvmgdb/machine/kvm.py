"""Any virtual machine under KVM, whoever its VMM is.

The agent (``native/agent``) attaches to the VMM's process, stops its vCPUs and
makes KVM calls inside it; guest memory is read and written through descriptors
that it hands over. The VMM knows nothing of us.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from kvmgdb.errors import (
    HostError,
    KvmgdbError,
    MachineError,
    NoRamError,
    TargetGoneError,
    UnsupportedError,
)
from kvmgdb.machine import kvm_registers as layout
from kvmgdb.machine.agent import Agent, AgentRegion
from kvmgdb.machine.interface import (
    Action,
    Machine,
    MachineInfo,
    MonitorAbility,
    PowerAbility,
    RamRegion,
    ResetAbility,
    StopEvent,
    StopReason,
    Vcpu,
)
from kvmgdb.machine.kvm_breakpoints import KvmBreakpoints, KvmStepping, SoftwareBreakpoints
from kvmgdb.machine.kvm_sampling import KvmSampling
from kvmgdb.machine.kvm_state import RUNNING, STOPPED_BY_SIGNAL, exit_reasons, observe
from kvmgdb.machine.native import Memory, Paging
from kvmgdb.machine.processes import vcpu_ids
from kvmgdb.machine.registers import BASIC_GROUPS, BY_NAME, Group, RegisterFile

_PE = 1  # CR0.PE: protected mode
_MAX_READ = 64 << 20
# How old what is known of the VMM's memory slots and vCPUs may be at a stop.
_LOOK_SECONDS = 0.1
_DEBUGGER_SECONDS = 1.0  # the same of other debuggers
_ASK_SECONDS = 2.0  # the same where the VMM has to be asked

_REASONS = {
    "REASON_REQUEST": StopReason.REQUEST,
    "REASON_STEP": StopReason.STEP,
    "REASON_BREAKPOINT": StopReason.BREAKPOINT,
    "REASON_HARDWARE": StopReason.HARDWARE_BREAKPOINT,
    "REASON_WATCH": StopReason.WATCHPOINT,
    "REASON_ERROR": StopReason.SHUTDOWN,
}
# Suberrors of KVM_EXIT_INTERNAL_ERROR (include/uapi/linux/kvm.h).
_INTERNAL_ERRORS = {
    1: "KVM could not emulate the guest's instruction",
    2: "the guest took exceptions while KVM delivered one",
    3: "KVM could not deliver an event to the guest",
    4: "the processor made an exit that KVM does not expect",
}


class KvmVcpu(Vcpu):
    """A vCPU of a VMM that the agent holds."""

    def __init__(self, machine: KvmMachine, index: int) -> None:
        self.machine = machine
        self.index = index
        self._registers = RegisterFile()
        self._fetched: set[Group] = set()

    def invalidate(self) -> None:
        """Forgets the registers: the vCPU has run."""
        if self._fetched:
            self._registers = RegisterFile()
            self._fetched = set()

    @property
    def gone(self) -> bool:
        """Whether the VMM has unplugged it: its thread has ended."""
        agent = self.machine.agent
        return bool(agent.shared.vcpu[self.index].state == agent.constant("VCPU_GONE"))

    def read_registers(self, groups: frozenset[Group]) -> RegisterFile:
        missing = groups - self._fetched
        if missing:
            self.machine.require_stopped()
            if self.gone:
                return RegisterFile()  # nothing is known of it
            if missing & (BASIC_GROUPS | {Group.DESCRIPTOR}):
                regs, sregs = self.machine.agent.register_structures(self.index)
                layout.decode_regs(regs, self._registers)
                layout.decode_sregs(sregs, self._registers)
                self._fetched |= BASIC_GROUPS | {Group.DESCRIPTOR}
            for group in missing - self._fetched:
                # A KVM that lacks the call leaves the group unknown.
                with contextlib.suppress(MachineError):
                    self._fetch(group)
                self._fetched.add(group)
        return self._registers

    def _fetch(self, group: Group) -> None:
        if group in (Group.FPU, Group.SSE):
            data = self._call("GET_FPU", bytes(layout.FPU_SIZE))
            layout.decode_fpu(data, self._registers)
            self._fetched |= {Group.FPU, Group.SSE}
        elif group is Group.AVX:
            xcrs = self._call("GET_XCRS", bytes(layout.XCRS_SIZE))
            layout.decode_avx(
                self._call("GET_XSAVE", bytes(layout.XSAVE_SIZE)), xcrs, self._registers
            )
        elif group is Group.DEBUG:
            data = self._call("GET_DEBUGREGS", bytes(layout.DEBUGREGS_SIZE))
            layout.decode_debugregs(data, self._registers)
        elif group in (Group.MSR, Group.KERNEL_GS):
            self._fetch_msrs(layout.msr_names(frozenset({group})))

    def _fetch_msrs(self, names: list[str]) -> None:
        """KVM stops at the first MSR that it does not know: go on behind it."""
        while names:
            data = self._call("GET_MSRS", layout.encode_msrs(names))
            names = names[layout.decode_msrs(data, names, self._registers) + 1 :]

    def _call(self, name: str, data: bytes) -> bytes:
        return self.machine.agent.ioctl(self.index, name, data)

    def write_register(self, name: str, data: bytes) -> None:
        register = BY_NAME[name]
        value = int.from_bytes(data[: register.size], "little")
        current = self.read_registers(frozenset({register.unit})).get_bytes(register)
        if current is not None and int.from_bytes(current, "little") == value:
            return
        if register.unit in (Group.MSR, Group.KERNEL_GS):
            self._write_msr(name, value)
        elif register.unit in (Group.FPU, Group.SSE):
            self._write_block("FPU", layout.patch_fpu, bytes(layout.FPU_SIZE), name, value)
        elif name in ("cs", "ss", "ds", "es", "fs", "gs"):
            self._write_selector(name, value)
        elif register.unit is Group.GENERAL:
            self._write_block("REGS", layout.patch_regs, bytes(layout.REGS_SIZE), name, value)
        else:
            self._write_block("SREGS", layout.patch_sregs, bytes(layout.SREGS_SIZE), name, value)
        self.invalidate()
        written = self.read_registers(frozenset({register.unit})).get(name)
        if written != value:
            shown = "unknown" if written is None else f"{written:#x}"
            raise MachineError(f"KVM did not take the value: {name} is now {shown}")

    def _write_block(self, block: str, patch: object, empty: bytes, name: str, value: int) -> None:
        assert callable(patch)
        changed = patch(self._call(f"GET_{block}", empty), name, value)
        if changed is None:
            raise UnsupportedError(f"this target cannot write the register {name}")
        self._call(f"SET_{block}", changed)

    def _write_msr(self, name: str, value: int) -> None:
        data = self._call("SET_MSRS", layout.encode_msrs([name], [value]))
        if int.from_bytes(data[:4], "little") != 1:
            raise MachineError(f"KVM refuses {value:#x} in {name}")

    def _write_selector(self, name: str, value: int) -> None:
        if (self.read_registers(BASIC_GROUPS).get("cr0") or 0) & _PE:
            raise UnsupportedError(
                f"{name} can be written in real mode only: in protected mode a selector "
                "brings a whole descriptor"
            )
        data = self._call("GET_SREGS", bytes(layout.SREGS_SIZE))
        self._call("SET_SREGS", layout.patch_real_mode_segment(data, name, value))

    def memory_view(self) -> tuple[Memory, Paging] | None:
        paging = self.paging()
        # Planted bytes have to be hidden from whoever reads.
        if paging is None or self.machine.software.planted:
            return None
        return self.machine.memory, paging

    def hide_planted(self, paging: Paging, gva: int, data: bytes) -> bytes:
        return self.machine.software.mask(paging, gva, data)

    def read_memory(self, gva: int, length: int) -> bytes:
        paging = self._paging()
        length = min(length, _MAX_READ)
        data, error = self.machine.memory.read_virtual_partial(paging, gva, length)
        if not data and error is not None:
            raise error
        return self.hide_planted(paging, gva, data)

    def write_memory(self, gva: int, data: bytes) -> None:
        paging = self._paging()
        # All of it must be there before any of it is written.
        self.machine.memory.read_virtual(paging, gva, len(data))
        with self.machine.software.lifted_around(paging, gva, len(data)):
            self.machine.memory.write_virtual(paging, gva, data)

    def _paging(self) -> Paging:
        paging = self.paging()
        if paging is None:
            raise MachineError(f"the control registers of vCPU {self.index} are not known")
        return paging

    @property
    def state(self) -> str:
        if self.gone:
            return "unplugged"
        agent = self.machine.agent
        state = agent.shared.vcpu[self.index].state
        return "halted" if state == agent.constant("VCPU_HALTED") else "running"


class KvmMachine(Machine):
    """A VMM's virtual machine, held by the agent.

    ``resetting``, ``power`` and ``monitor`` are what the caller knows of this
    VMM beyond KVM; None for a VMM that is not known.
    """

    def __init__(self, agent: Agent, name: str = "") -> None:
        self.agent = agent
        self.name = name
        self.notes: list[str] = []
        self._memory = Memory(agent.pid)
        self._regions: list[tuple[RamRegion, int]] = []
        self._regions_failed = False
        self._looked = time.monotonic()
        self._look_seconds = _LOOK_SECONDS
        self._not_held: set[int] = set()
        self._running = True
        self._closed = False
        self._gone_reported = False
        self._last_stop = StopEvent(StopReason.REQUEST)
        self._stop_count = 0
        # What the VMM itself says of its memory and of the machine's state, where it
        # can be asked.
        self.layout: Callable[[], list[AgentRegion]] | None = None
        self.told_state: Callable[[], str] | None = None
        # Says who sets breakpoints beside us; what it said last.
        self.other_debugger: Callable[[], str] | None = None
        self.conflict = ""
        self._asked_debuggers = self._looked
        self.holds_in_kvm = False  # the VMM may hold its vCPUs inside KVM_RUN
        self._kvm_run: dict[int, int] = {}  # vCPU's number: HVA
        self.software = SoftwareBreakpoints(self)
        self.breakpoints = self._breakpoints = KvmBreakpoints(self)
        self._agent_process = os.pidfd_open(agent.process.pid)

    @classmethod
    def open(
        cls,
        pid: int,
        name: str = "",
        resetting: ResetAbility | None = None,
        power: PowerAbility | None = None,
        monitor: MonitorAbility | None = None,
    ) -> KvmMachine:
        """Attaches to the VMM ``pid``; its guest runs on."""
        agent = Agent(pid)
        try:
            found = agent.discover()
            if found.error is not None:
                raise found.error
            attached = agent.attach()
            machine = cls(agent, name)
        except BaseException:
            agent.close()
            raise
        machine.vmm = Path(found.exe).name
        machine._kvm_run = {vcpu.id: vcpu.kvm_run for vcpu in found.vcpus}
        machine.vcpus = [KvmVcpu(machine, index) for index in range(attached.vcpu_count)]
        machine._stepping = KvmStepping(attached.block_irq)
        machine.stepping = machine._stepping
        if attached.sync_regs:
            machine.sampling = KvmSampling(agent)
        machine.resetting, machine.power, machine.monitor = resetting, power, monitor
        machine._stop_count = int(agent.shared.stop_count)
        if not attached.perf:
            machine.notes.append(
                "perf events are not permitted: while a breakpoint is set every exit of the "
                "VMM costs more"
            )
        return machine

    def note(self, text: str) -> None:
        """Says something, once, to whoever asks for :meth:`info`."""
        if text not in self.notes:
            self.notes.append(text)

    # ---- memory

    @property
    def memory(self) -> Memory:
        """Guest RAM where it lies now: a VMM may take it away at any moment, also while
        its vCPUs stand, and put something else in its place."""
        self._read_regions_once()
        if not self._closed and time.monotonic() - self._looked >= self._look_seconds:
            self._looked = time.monotonic()
            self._look_at_regions()
        return self._memory

    def _read_regions(self) -> None:
        self._memory.clear()
        regions = []
        for found in self._find_regions():
            try:
                if found.fd >= 0:
                    self._memory.add_file(
                        found.gpa, found.size, found.fd, found.offset, found.read_only
                    )
                else:
                    self._memory.add_file(
                        found.gpa, found.size, self.agent.memory_fd, found.hva, found.read_only
                    )
            finally:
                if found.fd >= 0:
                    os.close(found.fd)
            source = "file" if found.fd >= 0 else "process"
            label = "verified" if found.verified else "unverified"
            region = RamRegion(found.gpa, found.size, label, source, found.read_only)
            regions.append((region, found.hva))
        self._regions = regions

    def _look_for_changes(self) -> str:
        """VMMs plug memory and vCPUs in and out while their guest runs. To be called
        when the machine stands, which lets KVM confirm where memory lies. Returns
        what the user must know at once, or an empty string."""
        self._read_regions_once()
        if time.monotonic() - self._looked < self._look_seconds:
            return ""
        self._looked = time.monotonic()
        self._look_at_regions()
        return self._look_at_debuggers() or self._look_at_vcpus()

    def _look_at_debuggers(self) -> str:
        before, now = self.conflict, time.monotonic()
        if self.other_debugger is not None and now - self._asked_debuggers > _DEBUGGER_SECONDS:
            self._asked_debuggers = now
            with contextlib.suppress(KvmgdbError):
                self.conflict = self.other_debugger()
        if not self.conflict or self.conflict == before:
            return ""
        self.note(self.conflict)
        return self.conflict

    def _look_at_vcpus(self) -> str:
        """Holds what the VMM has plugged in, behind the vCPUs that are known: debuggers
        number them by their place."""
        shared = self.agent.shared
        held = {int(shared.vcpu[vcpu.index].id) for vcpu in self.vcpus}
        added = vcpu_ids(self.agent.pid) - held - self._not_held
        gone = [vcpu for vcpu in self.vcpus if vcpu.gone]
        if not added and not gone:
            return ""
        try:
            self.agent.adopt()
            failure = ""
        except TargetGoneError:
            return ""  # poll() tells it
        except KvmgdbError as error:
            failure = str(error)
        for index in range(len(self.vcpus), int(shared.vcpu_count)):
            self.vcpus.append(KvmVcpu(self, index))
        for vcpu in gone:
            vcpu.invalidate()
        if not added:
            return ""
        names = ", ".join(f"vCPU {number}" for number in sorted(added))
        text = f"the VMM has added {names}"
        if failure:
            self._not_held |= added
            text += f", which runs on: {failure}"
        self.note(text)
        return text

    def _look_at_regions(self) -> None:
        if not self._regions:
            return
        try:
            found = self._find_regions(descriptors=False)
            # In early boot nothing can be confirmed: that does not unsay what was.
            known = any(region.name == "verified" for region, _ in self._regions)
            if known and found and not any(region.verified for region in found):
                return
            now = {(new.gpa, new.size, new.read_only, new.hva) for new in found}
            before = {(old.gpa, old.size, old.read_only, hva) for old, hva in self._regions}
            if now != before:
                self._read_regions()
                self.note("the VMM has changed the guest's memory since kvmgdb attached")
        except TargetGoneError:
            pass  # poll() tells it
        except KvmgdbError as error:
            self.note(f"changes of the guest's memory cannot be seen: {error}")

    def _find_regions(self, descriptors: bool = True) -> list[AgentRegion]:
        """KVM's own table, or what the VMM says, or a guess: in this order."""
        found = self.agent.regions(descriptors)
        if self.layout is None or all(region.slot for region in found):
            return found
        try:
            told = self.layout()
        except KvmgdbError as error:
            self.layout = None
            self.note(f"where guest memory lies is a guess, the VMM cannot be asked: {error}")
            return found
        self._look_seconds = _ASK_SECONDS
        for region in found:
            if region.fd >= 0:
                os.close(region.fd)
        return told

    def hva_of(self, gpa: int) -> int:
        """Where guest-physical memory lies in the VMM. Raises NoRamError."""
        for region, hva in self._regions:
            if region.gpa <= gpa < region.gpa + region.size:
                return hva + (gpa - region.gpa)
        raise NoRamError(gpa)

    def write_physical(self, gpa: int, data: bytes) -> None:
        self.memory.write(gpa, data)

    # ---- run control

    def require_stopped(self) -> None:
        """Raises MachineError while the guest runs."""
        if self._closed:
            raise TargetGoneError("the virtual machine is gone")
        if self._running:
            raise MachineError("the guest is running: stop it first")

    @property
    def running(self) -> bool:
        return self._running

    def stop(self) -> StopEvent:
        if not self._running:
            return self._last_stop
        self.agent.stop()
        # One that stopped by itself at the same moment is what the user wants to see.
        event = self._take_stop() or StopEvent(StopReason.REQUEST, self._last_stop.vcpu)
        return self._note_stop(event)

    def _read_regions_once(self) -> None:
        """A stopped guest's page tables let KVM confirm where its RAM lies."""
        if self._regions or self._regions_failed:
            return
        try:
            self._read_regions()
        except (MachineError, HostError) as error:
            self._regions_failed = True
            self.notes.append(f"guest memory cannot be reached: {error}")

    def _note_stop(self, event: StopEvent) -> StopEvent:
        self._running = False
        for vcpu in self.vcpus:
            vcpu.invalidate()
        news = self._look_for_changes()
        if news and not event.detail:
            event = replace(event, detail=news)
        self._last_stop = event
        return event

    def request_stop(self) -> None:
        if self._running:
            event = self.stop()
            self._pending = event

    def resume(self, actions: Mapping[int, Action]) -> None:
        self.require_stopped()
        if not actions:
            raise MachineError("no vCPU was told to run")
        for vcpu in self.vcpus:
            vcpu.invalidate()
        step = self._stepping.action
        self.agent.resume(
            {
                index: step if action is Action.STEP else "CONTINUE"
                for index, action in actions.items()
            }
        )
        self._running = True

    @property
    def has_breakpoints(self) -> bool:
        return self.software.planted or self._breakpoints.inserted

    @contextlib.contextmanager
    def let_go(self) -> Iterator[None]:
        """Lets a stopped machine run, for what its VMM does only then, and holds it
        again. Nobody is told of either."""
        self.require_stopped()
        self.agent.resume()
        try:
            yield
        finally:
            self.agent.stop()
            self.agent.clear_event()
            self._stop_count = int(self.agent.shared.stop_count)
            for vcpu in self.vcpus:
                vcpu.invalidate()

    _pending: StopEvent | None = None
    _stepping: KvmStepping
    vmm = ""
    vcpus: list[KvmVcpu]

    @property
    def event_fds(self) -> tuple[int, ...]:
        return () if self._closed else (self.agent.event_fd, self._agent_process)

    def poll(self) -> StopEvent | None:
        if self._closed:
            return None
        pending, self._pending = self._pending, None
        if pending is not None:
            return pending
        self.agent.clear_event()
        if self.agent.shared.gone:
            return self._gone("the VMM has exited")
        if self.agent.process.poll() is not None:
            return self._gone("the agent that held the virtual machine has ended")
        if not self._running:
            return None
        event = self._take_stop()
        return None if event is None else self._note_stop(event)

    def _take_stop(self) -> StopEvent | None:
        """The stop that the machine made by itself since the last one, if any."""
        shared = self.agent.shared
        count = int(shared.stop_count)
        if count == self._stop_count:
            return None
        self._stop_count = count
        focus = int(shared.focus)
        if not 0 <= focus < len(self.vcpus):
            return None
        vcpu = shared.vcpu[focus]
        for name, reason in _REASONS.items():
            if vcpu.reason == self.agent.constant(name):
                return self._event(reason, focus, int(vcpu.address), int(vcpu.detail))
        return StopEvent(StopReason.EXTERNAL, focus)

    def _event(self, reason: StopReason, focus: int, address: int, detail: int) -> StopEvent:
        if reason is StopReason.SHUTDOWN:
            words = _INTERNAL_ERRORS.get(detail, f"KVM reports internal error {detail}")
            return StopEvent(reason, focus, detail=words)
        if reason is StopReason.WATCHPOINT:
            return StopEvent(reason, focus, address, self._breakpoints.watching(address))
        if reason in (StopReason.BREAKPOINT, StopReason.HARDWARE_BREAKPOINT):
            return StopEvent(reason, focus, address)
        return StopEvent(reason, focus)

    def _gone(self, detail: str) -> StopEvent | None:
        self.close()
        if self._gone_reported:
            return None
        self._gone_reported = True
        return StopEvent(StopReason.EXITED, detail=detail)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._running = False
        with contextlib.suppress(KvmgdbError):
            self.agent.detach()
        self.agent.close()
        os.close(self._agent_process)
        self._memory.close()

    def _state(self) -> str:
        """What the guest does that we do not hold."""
        shown = [self.agent.shared.vcpu[vcpu.index] for vcpu in self.vcpus]
        state = observe(
            self.agent.pid,
            [int(vcpu.tid) for vcpu in shown],
            lambda: exit_reasons(self.agent.memory_fd, self._kvm_run.values()),
        )
        if self.told_state is None or state == STOPPED_BY_SIGNAL:
            return state
        if state == RUNNING and not self.holds_in_kvm:
            return state
        try:
            return self.told_state()
        except KvmgdbError:
            return state

    def info(self) -> MachineInfo:
        return MachineInfo(
            name=self.name,
            backend=self.vmm,
            pid=self.agent.pid,
            vcpus=len(self.vcpus),
            accelerator="kvm",
            state=self._state() if self._running else "stopped",
            notes=tuple(self.notes),
            regions=tuple(region for region, _ in self._regions),
        )
