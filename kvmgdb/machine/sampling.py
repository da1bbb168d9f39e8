"""Samples of what vCPUs do: what to read for each, and where they come from.

The records are described in ``native/include/kvmgdb/sample.h``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StackArea:
    """A kernel stack that is no task's: [low, high), and where it keeps the stack
    pointer from before (GVA)."""

    low: int
    high: int
    link: int


@dataclass(frozen=True)
class SamplingPlan:
    """What to read of a guest for each sample.

    ``kernel_cr3``: page tables of the kernel's half, 0 for the vCPU's own.
    ``stack_size``: tasks' kernel stacks end at its multiples; 0 where that is not
    known, and then ``kernel_bytes`` from the stack pointer on are copied, else
    they are the limit. ``user_bytes``: as much of user mode's stack, or 0.
    ``task_pointers``: for each vCPU where the address of its task lies, or 0;
    ``task_words``: offsets into that task of up to eight words to keep, of which
    ``stack_word`` (counted from 1, 0 for none) is where its kernel stack begins.
    """

    kernel_cr3: int = 0
    stack_size: int = 0
    kernel_bytes: int = 8192
    user_bytes: int = 0
    task_pointers: tuple[int, ...] = ()
    task_words: tuple[int, ...] = ()
    stack_word: int = 0
    areas: tuple[StackArea, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class SamplingCounters:
    """``rounds``: times that all vCPUs were to be sampled; ``missed``: samples that
    came too late to be taken; ``samples``: records made; ``dropped``: samples without
    room; ``failed``: samples whose vCPU did not stop in time."""

    rounds: int = 0
    missed: int = 0
    samples: int = 0
    dropped: int = 0
    failed: int = 0


class SampleStream(ABC):
    """Samples that are being taken, until :meth:`close`."""

    @abstractmethod
    def peek(self) -> memoryview:
        """Whole records that have arrived; empty where there are none. Valid until
        :meth:`advance`."""

    @abstractmethod
    def advance(self, length: int) -> None:
        """Gives up the first ``length`` bytes of what :meth:`peek` returned."""

    @abstractmethod
    def counters(self) -> SamplingCounters: ...

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Lets that much time pass; samples arrive meanwhile. Raises TargetGoneError
        once the machine has ended."""

    @abstractmethod
    def close(self) -> None:
        """Ends sampling; what has arrived can still be read. Idempotent; raises
        nothing because the machine is gone."""


class SamplingAbility(ABC):
    """Samples at a rate of thousands a second, without a word to the machine."""

    @abstractmethod
    def start(self, rate: float, plan: SamplingPlan) -> SampleStream:
        """``rate``: rounds a second, at random times around it. The machine must be
        running. Raises UnsupportedError or MachineError."""
