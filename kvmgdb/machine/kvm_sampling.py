"""Samples from ``kvmgdb-agent``, by a ring in memory that it shares with us."""

from __future__ import annotations

import mmap
import os
import time

from kvmgdb.errors import KvmgdbError, TargetGoneError
from kvmgdb.machine.agent import Agent
from kvmgdb.machine.sampling import (
    SampleStream,
    SamplingAbility,
    SamplingCounters,
    SamplingPlan,
)

# Room for what arrives while nobody looks: at 1 kHz and two vCPUs some seconds.
_RING_BYTES = 32 << 20
_NS = 1_000_000_000
_LOOK_PERIOD = 0.05


class KvmSampling(SamplingAbility):
    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def start(self, rate: float, plan: SamplingPlan) -> SampleStream:
        return KvmSampleStream(self._agent, rate, plan)


class KvmSampleStream(SampleStream):
    def __init__(self, agent: Agent, rate: float, plan: SamplingPlan) -> None:
        self._agent = agent
        fd = agent.start_sampling(int(_NS / rate), _RING_BYTES, plan)
        try:
            self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)
        self._view = memoryview(self._map)
        self._ring = agent.ring(self._map)
        self._records = self._view[agent.ring_data :]
        self._capacity = len(self._records)
        self._tail = 0
        self._closed = False

    def peek(self) -> memoryview:
        head = int(self._ring.head)
        at = self._tail % self._capacity
        length = min(head - self._tail, self._capacity - at)
        return self._records[at : at + length]

    def advance(self, length: int) -> None:
        self._tail += length
        self._ring.tail = self._tail

    def counters(self) -> SamplingCounters:
        ring = self._ring
        return SamplingCounters(
            int(ring.rounds),
            int(ring.missed),
            int(ring.samples),
            int(ring.dropped),
            int(ring.failed),
        )

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            if self._agent.shared.gone:
                raise TargetGoneError("the virtual machine has ended")
            if self._agent.process.poll() is not None:
                raise TargetGoneError("the agent that held the virtual machine has ended")
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _LOOK_PERIOD))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._agent.stop_sampling()
        except KvmgdbError:
            return  # it went with the machine
