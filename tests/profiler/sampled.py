"""What the tests of sampling share: a session run until it has enough samples."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass

from kvmgdb.machine.interface import Machine
from kvmgdb.machine.sampling import SamplingCounters
from kvmgdb.profiler.recording import Frame, Recording, Task
from kvmgdb.profiler.session import Session, Wanted

SECONDS = 240.0


@dataclass
class Sampled:
    """A recording, and the session that made it, which has ended."""

    recording: Recording
    session: Session
    counters: SamplingCounters

    def stacks(self) -> Iterable[tuple[Task, list[Frame]]]:
        """Each sample of a running vCPU: its task, and its frames, root first."""
        frames, tasks = self.recording.frames, self.recording.tasks
        for sample in self.recording.samples():
            stack = [frames[number] for number in self.recording.stack_frames(sample.stack)]
            if stack:
                yield tasks[sample.task], stack

    def names(self) -> Counter[str]:
        """In how many samples a function is."""
        return Counter(name for _, stack in self.stacks() for name in {f.name for f in stack})


def sample(
    machine: Machine,
    enough: int | Callable[[Sampled], bool],
    rate: float = 200.0,
    wanted: Wanted | None = None,
) -> Sampled:
    """Samples until there are so many, or until ``enough`` says so."""
    recording = Recording("test", rate)
    session = Session(machine, recording, "test", rate, wanted or Wanted())
    session.begin()
    sampled = Sampled(recording, session, SamplingCounters())
    with closing(session):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            session.wait(0.2)
            session.drain()
            done = len(recording) >= enough if isinstance(enough, int) else enough(sampled)
            if done:
                break
        sampled.counters = session.close()
    return sampled


def holds(stack: list[str], part: list[str]) -> bool:
    """Whether these functions called each other, in this order."""
    return any(stack[at : at + len(part)] == part for at in range(len(stack)))
