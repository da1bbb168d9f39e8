"""QEMU without KVM (TCG), and any other QEMU that has a monitor.

QMP tells what the machine is, its GDB stub runs, stops and writes it, guest
memory is read straight from the QEMU process. Attaching opens QMP only; the
stub (started through the monitor where QEMU has none) is connected with the
first :meth:`QemuMachine.stop`, because QEMU stops the guest when it is.

Guest memory is *written* through the stub: TCG executes translations of guest
code, and only QEMU itself knows which of them a write makes stale.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from kvmgdb.errors import (
    AccessDeniedError,
    HostError,
    KvmgdbError,
    MachineError,
    NoRamError,
    ReadOnlyMemoryError,
    TargetBusyError,
    TargetGoneError,
    TargetTimeoutError,
    UnsupportedError,
)
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.guardian import Guardian
from kvmgdb.machine.holders import client_of
from kvmgdb.machine.interface import (
    Action,
    MachineInfo,
    MonitorAbility,
    PowerAbility,
    RamRegion,
    ResetAbility,
    StopEvent,
    StopReason,
)
from kvmgdb.machine.native import Memory, Paging
from kvmgdb.machine.qemu_memory import QemuMemoryMap
from kvmgdb.machine.qemu_process import (
    QemuProcess,
    connect_qmp,
    parse_chardev_address,
    qemu_processes,
    read_qemu_process,
)
from kvmgdb.machine.qemu_registers import MONITOR_GROUPS, decode_info_registers
from kvmgdb.machine.qmp import Qmp, QmpError
from kvmgdb.machine.registers import Group, RegisterFile
from kvmgdb.machine.sockets import listening_sockets, peer_process
from kvmgdb.machine.stub import StubMachine
from kvmgdb.machine.stub_vcpu import StubVcpu

_ARCHITECTURES = ("x86_64", "i386")
# Our own stub's socket lies in a directory of this name: a later session knows
# by it that a stub it finds was left by a kvmgdb that died.
_STUB_DIRECTORY = "kvmgdb-stub-"
# How long a memory layout may be trusted that the guest could have changed.
_LAYOUT_AGE = 1.0
_MONITOR_PERIOD = 0.2
_RESET_TIMEOUT = 10.0
# `info mem` of a guest with 5-level paging was seen to take 44 s.
_MONITOR_TIMEOUT = 180.0
# Run states in which `cont` continues a guest that was only stopped.
_RESUMABLE = ("paused", "debug", "suspended", "prelaunch")


class QemuVcpu(StubVcpu):
    """A vCPU whose memory is read past the stub where the host allows it."""

    machine: QemuMachine

    def memory_view(self) -> tuple[Memory, Paging] | None:
        paging = self.paging()
        memory = self.machine.current_memory(self)
        return None if memory is None or paging is None else (memory, paging)

    def read_memory(self, gva: int, length: int) -> bytes:
        view = self.memory_view()
        if view is None:
            return super().read_memory(gva, length)
        memory, paging = view
        data, error = memory.read_virtual_partial(paging, gva, length)
        if not data and error is not None:
            raise error
        return data


class QemuReset(ResetAbility):
    def __init__(self, machine: QemuMachine) -> None:
        self._machine = machine

    def reset(self) -> None:
        self._machine.system_reset()


class QemuPower(PowerAbility):
    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp

    def power_off(self) -> None:
        with contextlib.suppress(TargetGoneError):
            self._qmp.execute("quit")


class QemuMonitor(MonitorAbility):
    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp

    def command(self, line: str, vcpu: int = 0) -> str:
        return self._qmp.hmp(line, vcpu, _MONITOR_TIMEOUT)


class QemuMonitorOnDemand(MonitorAbility):
    """QEMU's monitor, connected for one command at a time: for a machine that
    does not need it otherwise."""

    def __init__(self, process: QemuProcess) -> None:
        self._process = process

    def command(self, line: str, vcpu: int = 0) -> str:
        qmp = connect_qmp(self._process)
        try:
            return qmp.hmp(line, vcpu, _MONITOR_TIMEOUT)
        finally:
            qmp.close()


class QemuMachine(StubMachine):
    """A QEMU reached by QMP."""

    def __init__(self, qmp: Qmp, pid: int | None) -> None:
        super().__init__(qmp.address)
        self._qmp = qmp
        self.pid = pid
        self.notes: list[str] = []
        self._map: QemuMemoryMap | None = None
        self._map_time = 0.0
        self._ran_since_map = False
        self._stub_directory: Path | None = None
        self._own_stub = False
        self._left_behind = False
        self._step_flags: int | None = None
        self._guardian: Guardian | None = None
        self._exit_detail = ""
        self._took_control = False
        self._polled = 0.0

    # ---- attaching

    @classmethod
    def open_process(cls, process: QemuProcess) -> QemuMachine:
        """Attaches to a QEMU process; finds its QMP socket by itself."""
        return cls._attach(connect_qmp(process), process.pid)

    @classmethod
    def open_qmp(cls, address: SocketAddress) -> QemuMachine:
        """Attaches through a QMP socket."""
        qmp = Qmp(address)
        return cls._attach(qmp, _peer_pid(qmp))

    @classmethod
    def _attach(cls, qmp: Qmp, pid: int | None) -> QemuMachine:
        machine = cls(qmp, pid)
        try:
            machine._describe()
        except BaseException:
            machine.close()
            raise
        return machine

    def _describe(self) -> None:
        architecture = str(self._qmp.execute("query-target").get("arch"))
        if architecture not in _ARCHITECTURES:
            raise UnsupportedError(f"the guest is {architecture}: kvmgdb knows x86 only")
        self.name = str(self._qmp.execute("query-name").get("name", ""))
        status = self._qmp.execute("query-status")
        self._running = self._found_running = bool(status.get("running"))
        self.accelerator = "kvm" if self._qmp.execute("query-kvm").get("enabled") else "tcg"
        cpus = self._qmp.execute("query-cpus-fast")
        # The stub numbers its threads from 1, in the order of the CPU indexes.
        numbers = sorted(int(cpu["cpu-index"]) for cpu in cpus)
        self.cpu_indexes = numbers
        self.vcpus = [
            QemuVcpu(self, index, b"%x" % (number + 1)) for index, number in enumerate(numbers)
        ]
        self._attach_memory()
        self.resetting = QemuReset(self)
        self.power = QemuPower(self._qmp)
        self.monitor = QemuMonitor(self._qmp)

    def _attach_memory(self) -> None:
        if self.pid is None:
            self.notes.append(
                "guest memory is read through the stub: the QEMU process behind "
                f"{self.address} is not visible from here"
            )
            return
        memory_map: QemuMemoryMap | None = None
        try:
            memory_map = QemuMemoryMap(self._qmp, self.pid)
            memory_map.refresh()
            if not memory_map.regions:
                raise AccessDeniedError(f"no RAM of PID {self.pid} can be reached")
            memory_map.memory.read(memory_map.regions[0].gpa, 1)
        except (OSError, KvmgdbError) as error:
            if memory_map is not None:
                memory_map.close()
            if isinstance(error, TargetGoneError | TargetTimeoutError):
                raise
            if errno.EMFILE in (error.errno, getattr(error, "os_error", 0)):
                # A limit of our own: the stub would be read with what is left of it.
                raise HostError(
                    f"cannot read the memory of PID {self.pid}", errno.EMFILE
                ) from error
            self.notes.append(
                f"guest memory is read through the stub, slowly: no access to the memory of "
                f"PID {self.pid} ({error}); {AccessDeniedError.remedy}"
            )
            return
        self._map = memory_map
        self._map_time = time.monotonic()

    # ---- the stub

    def stop(self) -> StopEvent:
        if self._client is None:
            self._connect_own_stub()
        return super().stop()

    def _connect_own_stub(self) -> None:
        if self._qmp.closed:
            raise TargetGoneError("the virtual machine is gone")
        status = self._qmp.execute("query-status")
        self._found_running = bool(status.get("running"))
        address = self._find_stub() or self._start_stub()
        if self._left_behind and not self._found_running:
            self._found_running = True
            self.notes.append("a kvmgdb that was killed had left the guest stopped")
        self._guardian = self._start_guardian(address)
        self._took_control = True
        self._resumed_once = False
        try:
            self.connect_stub(address)
        except KvmgdbError:
            self._give_up_control(orderly=True)
            raise
        self._running = False
        self._ran_since_map = True
        # QEMU announces nothing about the process that it debugs beyond a
        # number per vCPU; a vCPU that was plugged in since is not followed.
        if self.stepping is not None:
            self._step_flags = self.stepping.step_flags()

    def _start_guardian(self, stub: SocketAddress) -> Guardian | None:
        what = {
            "qmp": str(self._qmp.address),
            "stub": str(stub),
            "own": self._own_stub,
            "resume": self._found_running,
        }
        try:
            return Guardian.start(what)
        except OSError as error:
            self.notes.append(
                f"no guardian could be started ({error.strerror}): a kill -9 of kvmgdb "
                "would leave the guest as it stands"
            )
            return None

    def _find_stub(self) -> SocketAddress | None:
        """The stub that QEMU has already. Raises TargetBusyError where another
        debugger is connected to it."""
        for chardev in self._qmp.execute("query-chardev"):
            if chardev.get("label") != "gdb":
                continue
            filename = str(chardev.get("filename"))
            address = parse_chardev_address(filename, self.pid)
            if address is None:
                raise TargetBusyError(
                    f"kvmgdb cannot use QEMU's GDB stub on {filename.partition(',')[0]!r}",
                    "start QEMU without -gdb: kvmgdb starts the stub by itself",
                )
            if not filename.startswith("disconnected:"):
                raise TargetBusyError(
                    f"another debugger is connected to QEMU's GDB stub ({address})"
                    f"{client_of(address, self.pid or 0)}",
                    "detach it first: QEMU serves one debugger at a time, kvmgdb several",
                )
            if _STUB_DIRECTORY in filename:
                # Of a kvmgdb that was killed together with its guardian; its
                # socket may be gone.
                self._qmp.hmp("gdbserver none")
                shutil.rmtree(Path(address.path).parent, ignore_errors=True)
                self._left_behind = True
                return None
            return address
        return None

    def _start_stub(self) -> SocketAddress:
        root = self._filesystem_root()
        try:
            directory = tempfile.mkdtemp(prefix=_STUB_DIRECTORY, dir=f"{root}/tmp")
            self._stub_directory = Path(directory)
            owner = os.stat(f"/proc/{self.pid}") if self.pid is not None else None
            if owner is not None and os.geteuid() == 0:
                os.chown(directory, owner.st_uid, owner.st_gid)
        except OSError as error:
            raise MachineError(f"no place for the socket of QEMU's GDB stub: {error}") from None
        inside = directory.removeprefix(root) + "/gdb"
        answer = self._qmp.hmp(f"gdbserver unix:{inside},server=on,wait=off")
        self._own_stub = True
        if not os.path.exists(f"{directory}/gdb"):
            self._withdraw_stub()
            reason = answer.strip().replace("\n", "; ") or "it opened no socket"
            raise MachineError(f"QEMU cannot start its GDB stub: {reason}")
        return SocketAddress(path=f"{directory}/gdb")

    def _filesystem_root(self) -> str:
        """Our name for the root directory of the QEMU process."""
        if self.pid is None:
            return ""
        try:
            own, other = os.stat("/proc/self/ns/mnt"), os.stat(f"/proc/{self.pid}/ns/mnt")
            same_root = os.path.samefile("/", f"/proc/{self.pid}/root")
        except OSError:
            return ""
        return "" if own.st_ino == other.st_ino and same_root else f"/proc/{self.pid}/root"

    def _withdraw_stub(self) -> None:
        """Takes back a stub that we started, and its socket."""
        if self._own_stub and not self._qmp.closed:
            self._qmp.hmp("gdbserver none")
        if self._stub_directory is not None:
            shutil.rmtree(self._stub_directory, ignore_errors=True)
        self._own_stub = False
        self._stub_directory = None

    # ---- memory

    @property
    def memory(self) -> Memory | None:
        return super().memory if self._map is None else self._map.memory

    @property
    def reads_while_running(self) -> bool:
        return self._map is not None

    @property
    def stands_by_attaching(self) -> bool:
        return False

    def current_memory(self, vcpu: StubVcpu) -> Memory | None:
        """Guest-physical memory by a layout that is still true for ``vcpu``.

        Firmware moves RAM about below 1 MiB; a guest that pages has long left
        that behind, and its layout changes with hotplug only.
        """
        if self._map is None:
            return None
        if self._ran_since_map and not self._qmp.closed:
            paging = vcpu.paging()
            in_firmware = paging is None or not paging.cr0 & 0x80000000
            if time.monotonic() - self._map_time > _LAYOUT_AGE:
                self._refresh_map()
            elif in_firmware:
                self._refresh_map(thorough=False)
        return self._map.memory

    def _refresh_map(self, thorough: bool = True) -> None:
        if self._map is not None:
            with contextlib.suppress(OSError):
                self._map.refresh(thorough)
            if thorough:
                self._map_time = time.monotonic()
            self._ran_since_map = False

    def check_writable(self, vcpu: StubVcpu, gva: int, length: int) -> None:
        view = vcpu.memory_view()
        if view is not None:
            memory, paging = view
            memory.read_virtual(paging, gva, length)

    def write_physical(self, gpa: int, data: bytes) -> None:
        if self._region_of(gpa, len(data)).read_only:
            raise ReadOnlyMemoryError(gpa)
        super().write_physical(gpa, data)

    def _region_of(self, gpa: int, length: int) -> RamRegion:
        if self._map is None:
            return RamRegion(gpa, length, "unknown", "stub")
        self._refresh_map()
        for region in self._map.regions:
            if region.gpa <= gpa and gpa + length <= region.gpa + region.size:
                return region
        raise NoRamError(gpa)

    # ---- registers

    def complete_registers(
        self, vcpu: StubVcpu, groups: frozenset[Group], into: RegisterFile
    ) -> None:
        if groups & MONITOR_GROUPS:
            text = self._qmp.hmp("info registers", self.cpu_indexes[vcpu.index])
            decode_info_registers(text, into)

    # ---- run control

    def resume(self, actions: Mapping[int, Action]) -> None:
        resumed_before = self._resumed_once
        super().resume(actions)
        self._ran_since_map = True
        # A guest that was found paused and only stepped stays paused at the end.
        # (While one vCPU steps, GDB lets the others go on.)
        self._resumed_once = resumed_before or Action.STEP not in actions.values()
        if self._resumed_once and self._guardian is not None:
            self._guardian.expect_resume()

    @property
    def event_fds(self) -> tuple[int, ...]:
        if self._client is not None:
            return (self._client.fileno(),)
        return () if self._qmp.closed else (self._qmp.fileno(),)

    def poll(self) -> StopEvent | None:
        event = super().poll()
        if event is not None and event.reason is StopReason.EXITED:
            return event
        now = time.monotonic()
        if self._client is None or now - self._polled > _MONITOR_PERIOD:
            self._polled = now
            gone = self._poll_monitor()
            return event or gone
        return event

    def _poll_monitor(self) -> StopEvent | None:
        """Takes events of the monitor: what others did to the machine."""
        if self._qmp.closed:
            return None
        try:
            self._qmp.poll()
            resumed = self._take_events()
            if resumed and self._client is not None and not self._running:
                self._stop_again()
        except TargetGoneError:
            return self._gone("QEMU has exited")
        except KvmgdbError as error:
            self.notes.append(str(error))
        return None

    def _take_events(self) -> bool:
        """Whether the last change of state that QEMU told was a resume."""
        resumed = False
        while self._qmp.events:
            event = self._qmp.events.popleft()
            if event.name == "RESET":
                self.resets += 1
                self._ran_since_map = True
                self._map_time = 0.0
                for vcpu in self.vcpus:
                    vcpu.invalidate()
            elif event.name == "SHUTDOWN":
                self._exit_detail = f"QEMU ended: {event.data.get('reason', 'unknown reason')}"
            elif event.name in ("RESUME", "STOP"):
                resumed = event.name == "RESUME"
                if self._client is None:
                    self._running = resumed
        return resumed

    def _stop_again(self) -> None:
        """Somebody let the guest run through another monitor while a debugger
        holds it: its registers and memory must stand still."""
        if self._qmp.execute("query-status").get("running") and self._client is not None:
            self.notes.append("the guest was resumed through QEMU's monitor and stopped again")
            self._running = True
            super().stop()

    def _take_stop(self, packet: bytes) -> StopEvent | None:
        event = super()._take_stop(packet)
        if event is not None and event.reason is StopReason.EXTERNAL:
            status = str(self._qmp.execute("query-status").get("status"))
            words = {"paused": "QEMU's monitor stopped the guest"}
            event = StopEvent(
                event.reason, event.vcpu, detail=words.get(status, f"QEMU says: {status}")
            )
            self._last_stop = event
        return event

    def _gone(self, detail: str) -> StopEvent | None:
        try:
            self._qmp.poll()
        except TargetGoneError:
            detail = "QEMU has exited"
        except KvmgdbError:
            pass
        self._take_events()
        event = super()._gone(self._exit_detail or detail)
        self._qmp.close()
        self._give_up_control(orderly=True)
        return event

    def system_reset(self) -> None:
        """Resets the stopped machine and waits until it has been."""
        self._poll_monitor()
        self._qmp.execute("system_reset")
        deadline = time.monotonic() + _RESET_TIMEOUT
        while not any(event.name in ("RESET", "SHUTDOWN") for event in self._qmp.events):
            if time.monotonic() > deadline:
                raise TargetTimeoutError("QEMU did not reset the machine within 10 s")
            self._qmp.execute("query-status")
            time.sleep(0.01)
        self._take_events()
        self._refresh_map()

    # ---- leaving

    def close(self) -> None:
        self._give_up_control(self._let_go())
        if self._map is not None:
            self._map.close()
            self._map = None
        self._qmp.close()

    def _leave(self, client: object) -> None:
        super().stop()
        self.clear_breakpoints()
        if self.stepping is not None and self._step_flags is not None:
            self.stepping.set_step_flags(self._step_flags)

    def _give_up_control(self, orderly: bool) -> None:
        """Leaves QEMU as it was found. One that does not answer now is left to
        the guardian, which has more patience than the user of a debugger."""
        if not self._took_control:
            return
        self._took_control = False
        try:
            if orderly:
                self._withdraw_stub()
                self._hand_back()
        except TargetGoneError:
            pass
        except KvmgdbError:
            orderly = False
        if self._guardian is not None:
            if orderly:
                self._guardian.dismiss()
            else:
                self._qmp.close()
                self._guardian.take_over()
            self._guardian = None

    def _hand_back(self) -> None:
        """Lets the guest run if it ran when we came, or a client let it run."""
        if self._qmp.closed or self._last_stop.reason in (StopReason.EXTERNAL, StopReason.SHUTDOWN):
            return
        if self._found_running or self._resumed_once:
            status = self._qmp.execute("query-status")
            if not status.get("running") and status.get("status") in _RESUMABLE:
                with contextlib.suppress(QmpError):
                    self._qmp.execute("cont")

    def info(self) -> MachineInfo:
        major, minor, micro = self._qmp.version
        if self._client is not None:
            state = "running" if self._running else "stopped"
        else:
            state = str(self._qmp.execute("query-status").get("status"))
        return MachineInfo(
            name=self.name,
            backend="QEMU",
            pid=self.pid,
            vcpus=len(self.vcpus),
            accelerator=self.accelerator,
            state=state,
            notes=tuple(self.notes),
            regions=() if self._map is None else self._map.regions,
            facts={"version": f"{major}.{minor}.{micro}", "monitor": str(self._qmp.address)},
        )


def _peer_pid(qmp: Qmp) -> int | None:
    """The PID of the process behind a QMP socket, as this PID namespace sees it."""
    if qmp.address.path:
        pid = peer_process(qmp.fileno())
        return pid if pid and read_qemu_process(pid) is not None else None
    for process in qemu_processes():
        with contextlib.suppress(KvmgdbError):
            if any(a.port == qmp.address.port for a in listening_sockets(process.pid).values()):
                return process.pid
    return None
