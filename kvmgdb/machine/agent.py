"""Client of ``kvmgdb-agent``, the process that attaches to a running KVM VMM.

The protocol, and what each call means, is in ``native/include/kvmgdb/agent.h``;
the agent sends those declarations as its first message, and every layout and
number used here is taken from them. Addresses are guest-virtual (GVA),
guest-physical (GPA) or the VMM's own (HVA); times are in seconds.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import cffi

from kvmgdb.errors import (
    AccessDeniedError,
    BreakpointError,
    HostError,
    InvalidRangeError,
    KvmgdbError,
    MachineError,
    NoFreeBreakpointError,
    ProtocolError,
    TargetBusyError,
    TargetGoneError,
    TargetNotFoundError,
    TargetTimeoutError,
    UnsupportedError,
)
from kvmgdb.machine.holders import command_of, process_state, stopped_process
from kvmgdb.machine.sampling import SamplingPlan

_DECLARATIONS_MAX = 1 << 16
# Beyond the time that a request itself is given: the agent has bounds of its own.
_GRACE = 10.0
# Seconds that a process which is being killed takes at most to be seen as gone.
_END_SECONDS = 0.2


class ConfidentialGuestError(UnsupportedError):
    """The guest's memory and registers are encrypted (SEV, TDX)."""


class SeccompError(UnsupportedError):
    """The VMM filters its system calls, and we may not suspend the filter."""

    remedy = "run kvmgdb with CAP_SYS_ADMIN, which suspending a seccomp filter needs"


@dataclass(frozen=True)
class FoundVcpu:
    """A vCPU that discovery saw; ``tid`` is 0 where its thread is not known yet."""

    id: int
    fd: int
    tid: int
    seccomp: int
    kvm_run: int


@dataclass(frozen=True)
class Discovery:
    """What a process is to KVM; ``error`` is why it cannot be attached to."""

    pid: int
    exe: str
    bits: int
    tracer: int
    vm_count: int
    seccomp: bool
    confidential: bool
    other_pid_namespace: bool
    vcpus: tuple[FoundVcpu, ...]
    error: KvmgdbError | None


@dataclass(frozen=True)
class Attached:
    """What can be done with the VM that the agent is attached to."""

    vcpu_count: int
    sync_regs: bool
    block_irq: bool
    perf: bool


@dataclass(frozen=True)
class AgentRegion:
    """Guest RAM at ``hva`` in the VMM, and at ``offset`` of ``fd`` (owned by the
    receiver; -1: private memory). ``verified``: KVM confirmed the place, or the
    VMM named it. ``slot``: it is one of all the slots in KVM's own table."""

    gpa: int
    size: int
    hva: int
    offset: int
    fd: int
    verified: bool
    read_only: bool
    slot: bool = False


def agent_path() -> Path:
    """The agent's program: what KVMGDB_AGENT names, the one installed beside
    this package, or the one built in a checkout."""
    if named := os.environ.get("KVMGDB_AGENT"):
        return Path(named)
    package = Path(__file__).resolve().parent.parent
    installed = package / "bin" / "kvmgdb-agent"
    built = package.parent / "native" / "agent" / "build" / "kvmgdb-agent"
    return installed if installed.exists() else built


@cache
def _declared(text: str) -> tuple[Any, Any]:
    ffi = cffi.FFI()
    ffi.cdef(text)
    return ffi, ffi.dlopen(None)  # constants need a library object; any will do


class Agent:
    """An agent process for the VMM ``pid``.

    Raises HostError where the agent cannot be started. Every call may raise
    TargetGoneError; after that, and after :meth:`close`, nothing works.
    """

    def __init__(self, pid: int, program: Path | None = None) -> None:
        self.pid = pid
        self.event_fd = -1
        self.memory_fd = -1
        self.attached: Attached | None = None
        self.elapsed = 0.0
        self._shared_map: mmap.mmap | None = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [str(program or agent_path()), str(pid), str(theirs.fileno())]
            try:
                self.process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
                )
            except OSError as error:
                ours.close()
                raise HostError(f"cannot start {command[0]}", error.errno or 0) from None
        self._socket = ours
        ours.settimeout(_GRACE)
        declarations = self._receive(_DECLARATIONS_MAX)[0]
        try:
            self._ffi, self._lib = _declared(declarations.decode("ascii"))
        except (UnicodeDecodeError, cffi.CDefError, cffi.FFIError):
            self.close()
            raise ProtocolError("the agent's declarations cannot be read") from None

    # ---- requests ---------------------------------------------------------

    def constant(self, name: str) -> int:
        """A number of agent.h, without its KVMGDB_AGENT_ prefix."""
        return int(getattr(self._lib, f"KVMGDB_AGENT_{name}"))

    def discover(self) -> Discovery:
        """What ``pid`` is, without touching it. Raises TargetGoneError and
        AccessDeniedError only; what else hinders attaching is in the result."""
        reply, payload, _ = self._exchange("DISCOVER")
        error = self._error_of(reply, "looked at")
        if isinstance(error, TargetGoneError | AccessDeniedError):
            raise error
        ffi = self._ffi
        data = ffi.from_buffer(payload)
        info = ffi.cast("struct kvmgdb_agent_discovery *", data)
        found = ffi.cast(
            "struct kvmgdb_agent_found_vcpu *",
            data + ffi.sizeof("struct kvmgdb_agent_discovery"),
        )
        return Discovery(
            pid=info.pid,
            exe=os.fsdecode(ffi.string(info.exe)),
            bits=info.bits,
            tracer=info.tracer,
            vm_count=info.vm_count,
            seccomp=bool(info.seccomp),
            confidential=bool(info.confidential),
            other_pid_namespace=bool(info.other_pid_namespace),
            vcpus=tuple(
                FoundVcpu(vcpu.id, vcpu.fd, vcpu.tid, vcpu.seccomp, vcpu.kvm_run)
                for vcpu in (found[i] for i in range(info.vcpu_count))
            ),
            error=error,
        )

    def attach(self, timeout: float = 5.0) -> Attached:
        """Attaches; the guest runs on. Raises one of the errors that say why
        this process cannot be attached to; it has not been touched then."""
        payload, fds = self._request("ATTACH", doing="attached to", timeout=timeout)
        shared_fd, self.event_fd, self.memory_fd = fds
        size = self._ffi.sizeof("struct kvmgdb_agent_shared")
        try:
            self._shared_map = mmap.mmap(shared_fd, size)
        finally:
            os.close(shared_fd)
        self.shared = self._ffi.cast(
            "struct kvmgdb_agent_shared *", self._ffi.from_buffer(self._shared_map)
        )
        return self._take_attached(payload)

    def _take_attached(self, payload: bytes) -> Attached:
        data = self._ffi.from_buffer(payload)
        attached = self._ffi.cast("struct kvmgdb_agent_attached *", data)
        self.attached = Attached(
            attached.vcpu_count,
            bool(attached.sync_regs),
            bool(attached.block_irq),
            bool(attached.perf),
        )
        return self.attached

    def adopt(self, timeout: float = 2.0) -> Attached:
        """Takes in vCPUs that the VMM has added, and threads that have taken over
        one; the machine must be stopped, and they are then, too."""
        payload, _ = self._request("ADOPT", doing="held", timeout=timeout)
        return self._take_attached(payload)

    def stop(self, vcpu: int | None = None, timeout: float = 5.0) -> None:
        """Stops one vCPU or all. TargetTimeoutError: one did not, and those
        that did run again."""
        index = self.constant("ALL") if vcpu is None else vcpu
        self._request("STOP", vcpu=index, doing="stopped", timeout=timeout)

    def resume(self, actions: Mapping[int, str] | None = None) -> None:
        """Lets vCPUs go: index to "CONTINUE", "STEP" or "STEP_BLOCK_IRQ"; those
        not named stay. None: all continue. A stop that follows is an event."""
        chosen = [
            self.constant("CONTINUE" if actions is None else actions.get(i, "STAY"))
            for i in range(int(self.shared.vcpu_count))
        ]
        self._request("RESUME", payload=bytes(chosen), doing="resumed")

    def ioctl(self, vcpu: int, name: str, data: bytes) -> bytes:
        """A KVM call of a stopped vCPU, by KVM's name without ``KVM_``, as
        "GET_MSRS"; ``data`` and the result are its structure."""
        return self._request(
            "IOCTL", vcpu=vcpu, argument=self.constant(name), payload=data, doing=f"asked {name}"
        )[0]

    def insert(
        self,
        kind: str,
        gva: int,
        length: int = 1,
        gpa: int = 0,
        hva: int = 0,
        user: bool = False,
    ) -> None:
        """A breakpoint: SOFTWARE (which needs ``gpa`` and ``hva``), HARDWARE,
        WRITE or ACCESS; ``user`` where programs may execute what is there. The
        machine must be stopped. A host whose KVM interprets guest code has no
        ACCESS and nothing for programs, and WRITE there steps the guest."""
        payload = self._breakpoint(kind, gva, length, gpa, hva, user)
        self._request("INSERT", payload=payload, doing=f"given a breakpoint ({kind.lower()})")

    def remove(self, kind: str, gva: int, length: int = 1, gpa: int = 0, hva: int = 0) -> None:
        self._request("REMOVE", payload=self._breakpoint(kind, gva, length, gpa, hva))

    def regions(self, descriptors: bool = True) -> list[AgentRegion]:
        """Where guest RAM lies. Those of a stopped machine can be verified. Without
        ``descriptors`` every ``fd`` is -1: faster, to see what has changed."""
        payload, fds = self._request(
            "REGIONS", argument=0 if descriptors else 1, doing="asked for its memory"
        )
        size = self._ffi.sizeof("struct kvmgdb_agent_region")
        data = self._ffi.from_buffer(payload)
        table = self._ffi.cast("struct kvmgdb_agent_region *", data)
        return [
            AgentRegion(
                region.gpa,
                region.size,
                region.hva,
                region.offset,
                fds[region.descriptor] if region.descriptor >= 0 else -1,
                bool(region.verified),
                bool(region.read_only),
                bool(region.slot),
            )
            for region in (table[i] for i in range(len(payload) // size))
        ]

    def start_sampling(self, period_ns: int, ring_bytes: int, plan: SamplingPlan) -> int:
        """Has samples of all vCPUs taken; returns a descriptor of their ring, which
        the caller owns. Raises UnsupportedError where this host's KVM cannot."""
        ffi = self._ffi
        head = ffi.new("struct kvmgdb_agent_sampling *")
        head.period_ns, head.ring_bytes = period_ns, ring_bytes
        sampling = head.sampling
        sampling.kernel_cr3 = plan.kernel_cr3
        sampling.stack_size = plan.stack_size
        sampling.kernel_bytes, sampling.user_bytes = plan.kernel_bytes, plan.user_bytes
        sampling.word_count, sampling.area_count = len(plan.task_words), len(plan.areas)
        sampling.stack_word = plan.stack_word
        sampling.word_offset[0 : len(plan.task_words)] = plan.task_words
        assert self.attached is not None
        pointers = ffi.new("uint64_t[]", self.attached.vcpu_count)
        for vcpu, pointer in enumerate(plan.task_pointers):
            pointers[vcpu] = pointer
        areas = ffi.new(
            "struct kvmgdb_stack_area[]",
            [(area.low, area.high, area.link) for area in plan.areas],
        )
        payload = b"".join(bytes(ffi.buffer(part)) for part in (head, pointers, areas))
        return self._request("SAMPLE_START", payload=payload, doing="sampled")[1][0]

    def stop_sampling(self) -> None:
        self._request("SAMPLE_STOP", doing="left alone")

    def ring(self, memory: mmap.mmap) -> Any:
        """The ``struct kvmgdb_ring`` that a ring begins with."""
        return self._ffi.cast("struct kvmgdb_ring *", self._ffi.from_buffer(memory))

    @property
    def ring_data(self) -> int:
        """Bytes from the start of a ring to its records."""
        return int(self._lib.KVMGDB_RING_DATA)

    def registers(self, vcpu: int) -> Mapping[str, int]:
        """General and control registers of a stopped vCPU. Raises MachineError
        while it runs."""
        shown = self.shared.vcpu[vcpu]
        if not shown.registers_valid:
            raise MachineError(f"vCPU {vcpu} is running")
        values = {name: int(getattr(shown.regs, name)) for name in self._fields("regs")}
        for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"):
            values[name] = int(getattr(shown.sregs, name))
        return values

    def register_structures(self, vcpu: int) -> tuple[bytes, bytes]:
        """``struct kvm_regs`` and ``struct kvm_sregs`` of a stopped vCPU, as KVM
        filled them. Raises MachineError while it runs."""
        shown = self.shared.vcpu[vcpu]
        if not shown.registers_valid:
            raise MachineError(f"vCPU {vcpu} is running")
        field = self._ffi.addressof
        return (
            bytes(self._ffi.buffer(field(shown, "regs"))),
            bytes(self._ffi.buffer(field(shown, "sregs"))),
        )

    def clear_event(self) -> None:
        """Makes ``event_fd`` unreadable until something happens again."""
        with suppress(BlockingIOError):
            os.read(self.event_fd, 8)

    def detach(self) -> None:
        """Puts everything back and lets go of the VMM; ends the agent."""
        try:
            self._request("DETACH", doing="detached from")
        finally:
            self.close()

    def close(self) -> None:
        """Ends the agent, which detaches first. Idempotent."""
        self._socket.close()
        for fd in (self.event_fd, self.memory_fd):
            if fd >= 0:
                os.close(fd)
        self.event_fd = self.memory_fd = -1
        try:
            self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- the wire ---------------------------------------------------------

    def _fields(self, name: str) -> list[str]:
        return [field for field, _ in self._ffi.typeof(f"struct kvmgdb_agent_{name}").fields]

    def _breakpoint(
        self, kind: str, gva: int, length: int, gpa: int, hva: int, user: bool = False
    ) -> bytes:
        fields = {"length": length, "user": user, "gva": gva, "gpa": gpa, "hva": hva}
        value = self._ffi.new(
            "struct kvmgdb_agent_breakpoint *", {"kind": self.constant(kind), **fields}
        )
        return bytes(self._ffi.buffer(value))

    def _request(
        self,
        command: str,
        *,
        vcpu: int = -1,
        argument: int = 0,
        payload: bytes = b"",
        doing: str = "debugged",
        timeout: float = 0.0,
    ) -> tuple[bytes, list[int]]:
        reply, result, fds = self._exchange(command, vcpu, argument, payload, timeout)
        error = self._error_of(reply, doing)
        if error is not None:
            for fd in fds:
                os.close(fd)
            raise error
        return result, fds

    def _exchange(
        self,
        command: str,
        vcpu: int = -1,
        argument: int = 0,
        payload: bytes = b"",
        timeout: float = 0.0,
    ) -> tuple[Any, bytes, list[int]]:
        ffi = self._ffi
        number = self.constant(command)
        request = ffi.new(
            "struct kvmgdb_agent_request *",
            {
                "command": number,
                "vcpu": vcpu,
                "argument": argument,
                "length": len(payload),
                "timeout_ns": int(timeout * 1e9),
            },
        )
        self._socket.settimeout(timeout + _GRACE)
        try:
            self._socket.send(bytes(ffi.buffer(request)) + payload)
        except TimeoutError:
            raise TargetTimeoutError("the agent takes no requests") from None
        except OSError:
            raise self._ended() from None
        head = ffi.sizeof("struct kvmgdb_agent_reply")
        data, fds = self._receive(head + self.constant("MAX_PAYLOAD"))
        reply = ffi.new("struct kvmgdb_agent_reply *")
        if len(data) >= head:
            ffi.buffer(reply)[:] = data[:head]
        if reply.command != number or len(data) != head + reply.length:
            raise ProtocolError("the agent's reply is not one to this request")
        self.elapsed = reply.elapsed_ns / 1e9
        return reply, data[head:], fds

    def _receive(self, size: int) -> tuple[bytes, list[int]]:
        item = array.array("i").itemsize
        space = socket.CMSG_SPACE(256 * item)
        try:
            data, control, _, _ = self._socket.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise TargetTimeoutError("the agent did not answer in time") from None
        except OSError:
            data = b""
            control = []
        if not data:
            raise self._ended()
        fds = array.array("i")
        for level, kind, value in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(value[: len(value) - len(value) % item])
        return data, list(fds)

    def _ended(self) -> TargetGoneError:
        return TargetGoneError(f"the agent for process {self.pid} has ended")

    def _error_of(self, reply: Any, doing: str) -> KvmgdbError | None:
        if reply.status == self.constant("OK"):
            return None
        return _error(self, reply, doing)


def _error(agent: Agent, reply: Any, doing: str) -> KvmgdbError:
    """The one table from the agent's status to what a user is told."""
    pid, vcpu, detail, os_error = agent.pid, reply.vcpu, reply.detail, reply.os_error
    if reply.status == agent.constant("HOST") and _ends(pid):
        return TargetGoneError(f"process {pid} has exited")
    because = f": {os.strerror(os_error)}" if os_error else ""
    table: Sequence[tuple[str, KvmgdbError]] = (
        ("NO_PROCESS", TargetGoneError(f"there is no process {pid}")),
        ("NO_VM", TargetNotFoundError(f"process {pid} runs no KVM virtual machine")),
        ("NO_VCPU", TargetNotFoundError(f"the virtual machine of process {pid} has no vCPU yet")),
        ("SEVERAL_VMS", UnsupportedError(f"process {pid} runs {detail} virtual machines")),
        ("PERMISSION", AccessDeniedError(f"the host denies access to process {pid}{because}")),
        (
            "TRACED",
            TargetBusyError(
                f"process {pid} is being traced by process {detail}{_tracer(int(detail))}",
                "end that debugger (or strace) first",
            ),
        ),
        ("NOT_64BIT", UnsupportedError(f"process {pid} is a 32-bit program")),
        (
            "CONFIDENTIAL",
            ConfidentialGuestError(
                f"the guest of process {pid} is confidential: its memory is encrypted"
            ),
        ),
        (
            "NO_THREAD",
            MachineError(
                f"no thread of process {pid} runs vCPU {detail}",
                "let the virtual machine run, if it was started paused",
            ),
        ),
        ("SECCOMP", SeccompError(f"process {pid} has a seccomp filter")),
        (
            "TIMEOUT",
            # A thread that the agent traces is in state t, by our own doing.
            stopped_process(pid, states="T")
            or TargetTimeoutError(f"vCPU {vcpu} could not be {doing} in time" + _where(detail)),
        ),
        ("GONE", TargetGoneError(f"process {pid} has exited")),
        ("INVALID", InvalidRangeError("the agent was asked for something that makes no sense")),
        ("RUNNING", MachineError(f"vCPU {vcpu} is running", "stop it first")),
        ("UNSUPPORTED", UnsupportedError(f"process {pid} cannot be {doing} on this host")),
        ("NO_FREE", NoFreeBreakpointError(f"all {detail} breakpoints of this kind are in use")),
        ("REFUSED", HostError(f"KVM refused: vCPU {vcpu} not {doing}", os_error)),
        ("NO_RAM", UnsupportedError(f"process {pid} has no memory that could be guest RAM")),
        ("HOST", HostError(f"process {pid} cannot be {doing}", os_error)),
    )
    for name, error in table:
        if reply.status == agent.constant(name):
            return error
    return BreakpointError(f"the agent failed with status {reply.status}")


def _ends(pid: int) -> bool:
    """Whether a process of which a system call says something odd is about to be gone."""
    deadline = time.monotonic() + _END_SECONDS
    while process_state(pid) not in ("", "Z", "X"):
        if time.monotonic() > deadline:
            return False
        time.sleep(_END_SECONDS / 20)
    return True


def _tracer(pid: int) -> str:
    command = command_of(pid)
    return f" ({command})" if command else ""


def _where(exit_reason: int) -> str:
    """Names of KVM_EXIT_* (Documentation/virt/kvm/api.rst) that a VMM handles."""
    names = {2: "port I/O", 3: "a hypercall", 5: "a halt", 6: "memory-mapped I/O", 10: "a signal"}
    if exit_reason < 0:
        return ""
    return (
        f": its thread is busy or waiting in the VMM after "
        f"{names.get(exit_reason, f'KVM exit {exit_reason}')}"
    )
