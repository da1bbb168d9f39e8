"""A profile that goes on: samples are taken in a thread, and those of the last
seconds are kept."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from kvmgdb.errors import KvmgdbError
from kvmgdb.profiler.recording import Columns, Recording, State
from kvmgdb.profiler.tree import CallTree
from kvmgdb.profiler.view import Group, Selection, View

_SLICE = 0.1


class Source(Protocol):
    """What takes samples of a machine into a recording, from its construction on."""

    def wait(self, seconds: float) -> None:
        """Lets that much time pass. Raises TargetGoneError once there is no more."""

    def drain(self) -> None:
        """Puts the samples that have arrived into the recording."""

    def close(self) -> object:
        """Ends sampling."""


class Phase(Enum):
    STARTING = "starting"
    SAMPLING = "sampling"
    PAUSED = "paused"
    ENDED = "ended"


class Live:
    """Samples by ``source``, which is made anew after each pause: while it pauses,
    nothing touches the machine. ``seconds`` are how far back it looks.

    Use it as a context manager; on its end nothing samples any more.
    """

    def __init__(self, recording: Recording, source: Callable[[], Source], seconds: float) -> None:
        self.recording = recording
        self.seconds = seconds
        self.phase = Phase.STARTING
        self.started = False
        """Whether sampling has ever begun."""
        self.error: KvmgdbError | None = None
        self._make_source = source
        self._slices: deque[tuple[float, Columns]] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._paused = False
        self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sampling", daemon=True)

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    # -- control

    @property
    def paused(self) -> bool:
        return self._paused

    def pause(self, paused: bool) -> None:
        """Lets the machine be, or goes on. What was seen before a pause is kept
        until then."""
        with self._changed:
            self._paused = paused
            self._changed.notify()

    @property
    def over(self) -> bool:
        """Whether no more samples will come."""
        return not self._thread.is_alive()

    # -- the thread

    def _run(self) -> None:
        source: Source | None = None
        try:
            while not self._closing:
                if self._paused:
                    if source is not None:
                        self._close(source)
                        source = None
                    self._rest()
                    continue
                if source is None:
                    self.phase = Phase.STARTING
                    source = self._make_source()
                    self._slices.clear()
                    self.phase = Phase.SAMPLING
                    self.started = True
                source.wait(_SLICE)
                with self._lock:
                    source.drain()
        except KvmgdbError as error:
            self.error = error
        except BaseException as error:  # for whoever waits for the thread
            self._failure = error
        finally:
            if source is not None:
                self._close(source)
            self.phase = Phase.ENDED

    def _close(self, source: Source) -> None:
        with self._lock:
            source.close()

    def _rest(self) -> None:
        with self._changed:
            self.phase = Phase.PAUSED
            self._changed.wait_for(lambda: self._closing or not self._paused)

    # -- reading

    def update(self) -> None:
        """Takes in what has been sampled, and lets go of what is too old."""
        with self._lock:
            columns = self.recording.take_samples()
        now = time.monotonic()
        if len(columns.time_ns):
            self._slices.append((now, columns))
        if self.phase is not Phase.SAMPLING:
            return
        while self._slices and self._slices[0][0] < now - self.seconds:
            self._slices.popleft()

    def tree(self, view: View) -> CallTree:
        """The calls of the last seconds."""
        tree = CallTree(self.recording, view)
        for _, columns in list(self._slices):
            tree.add(columns)
        return tree

    def groups(self, view: View) -> Counter[Group]:
        """How many samples there are of each group."""
        selection = Selection(self.recording, view)
        found: Counter[Group] = Counter()
        for _, columns in list(self._slices):
            for group, counts in selection.counts(columns).items():
                found[group] += counts.total()
        return found

    def busy(self) -> float | None:
        """The part (0 to 1) of the vCPUs' time in which they ran."""
        running = halted = 0
        for _, columns in list(self._slices):
            running += columns.state.count(State.RUNNING)
            halted += columns.state.count(State.HALTED)
        return running / (running + halted) if running + halted else None
