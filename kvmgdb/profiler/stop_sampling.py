"""Samples of a machine that only can be stopped and resumed: QEMU without KVM, a
GDB stub, a KVM that keeps registers to itself."""

from __future__ import annotations

import random
import time
from collections import deque

from kvmgdb.errors import MachineError, MemoryFault, NoRamError, TargetGoneError
from kvmgdb.machine.interface import Action, Machine, StopReason, Vcpu
from kvmgdb.machine.registers import Group
from kvmgdb.machine.sampling import SampleStream, SamplingCounters, SamplingPlan
from kvmgdb.profiler.native import HALTED, STOPPED, SampleMaker

_REGISTERS = {
    "ip": "rip",
    "sp": "rsp",
    "bp": "rbp",
    "ax": "rax",
    "dx": "rdx",
    "di": "rdi",
    "r10": "r10",
    "r13": "r13",
    "cx": "rcx",
}
_GROUPS = frozenset({Group.GENERAL})
# Records that wait to be read, in bytes.
_ROOM = 32 << 20


class StopSampling(SampleStream):
    """Stops the machine for each round, which takes as long as it takes: rounds for
    which there is no time are counted as missed.

    A machine that somebody else has stopped is left so.
    """

    def __init__(self, machine: Machine, rate: float, plan: SamplingPlan) -> None:
        self._machine = machine
        self._period = 1.0 / rate
        self._maker = SampleMaker(plan)
        self._due = time.monotonic() + self._interval()
        self._records: deque[bytearray] = deque()
        self._room = _ROOM
        self._rounds = self._missed = self._samples = self._dropped = self._failed = 0

    def peek(self) -> memoryview:
        return memoryview(self._records[0]) if self._records else memoryview(b"")

    def advance(self, length: int) -> None:
        if length:
            self._room += len(self._records.popleft())

    def counters(self) -> SamplingCounters:
        return SamplingCounters(
            self._rounds, self._missed, self._samples, self._dropped, self._failed
        )

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            if now < self._due:
                time.sleep(min(self._due, end) - now)
                continue
            self._take_round()
            self._due += self._interval()
            now = time.monotonic()
            if now >= self._due:
                # The guest runs for a random time all the same: a sample right after
                # another would meet it where it was left.
                self._missed += (1 + int((now - self._due) / self._period)) * len(
                    self._machine.vcpus
                )
                self._due = now + self._interval()

    def close(self) -> None:
        """Nothing is left to end: the machine runs between two rounds."""

    def _interval(self) -> float:
        return self._period * random.uniform(0.5, 1.5)

    def _take_round(self) -> None:
        event = self._machine.poll()
        if event is not None and event.reason is StopReason.EXITED:
            raise TargetGoneError(event.detail or "the virtual machine has ended")
        self._rounds += 1
        now = time.monotonic_ns()
        if not self._machine.running:
            for vcpu in self._machine.vcpus:
                self._add(self._maker.of_state(vcpu.index, STOPPED, now))
            return
        event = self._machine.stop()
        if event.reason is StopReason.EXITED:
            raise TargetGoneError(event.detail or "the virtual machine has ended")
        records = []
        if event.reason is StopReason.REQUEST:
            records = [self._sample(vcpu, now) for vcpu in self._machine.vcpus]
            self._machine.resume({vcpu.index: Action.CONTINUE for vcpu in self._machine.vcpus})
        held = time.monotonic_ns() - now
        for record in records:
            if record is not None:
                self._maker.set_held(record, held)
                self._add(record)

    def _sample(self, vcpu: Vcpu, now: int) -> bytearray | None:
        if vcpu.state == "halted":
            return self._maker.of_state(vcpu.index, HALTED, now)
        try:
            registers = vcpu.read_registers(_GROUPS)
            memory, paging = vcpu.memory_view() or (self._machine.memory, vcpu.paging())
            if memory is None or paging is None:
                raise MachineError("the guest's memory cannot be read")
            values = {ours: registers.get(theirs) or 0 for ours, theirs in _REGISTERS.items()}
            return self._maker.of_vcpu(memory, paging, vcpu.index, values, now)
        except TargetGoneError:
            raise
        except (MachineError, MemoryFault, NoRamError):
            self._failed += 1
            return None

    def _add(self, record: bytearray) -> None:
        if len(record) > self._room:
            self._dropped += 1
            return
        self._room -= len(record)
        self._records.append(record)
        self._samples += 1
