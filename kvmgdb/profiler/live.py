"""A profile that goes on: samples are taken in a thread, and those of the last
seconds are kept."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from kvmgdb.errors import KvmgdbError, TargetGoneError
from kvmgdb.profiler.recording import Columns, FrameKind, Recording, State
from kvmgdb.profiler.session import RebootedError
from kvmgdb.profiler.tree import CallTree
from kvmgdb.profiler.view import Group, Selection, View

_SLICE = 0.1
_BOOT_SECONDS = 120.0
_LOOK_AGAIN_SECONDS = 2.0
_KERNEL_HALF = 1 << 63
_FEWEST_SAMPLES = 20
_LOST_PART = 0.9


class Source(Protocol):
    """What takes samples of a machine into a recording, from its construction on."""

    @property
    def kernel(self) -> object | None:
        """The guest's kernel, or None where none was found."""

    def wait(self, seconds: float) -> None:
        """Lets that much time pass. Raises TargetGoneError once there is no more, and
        RebootedError where the guest has started again."""

    def drain(self, seconds: float) -> bool:
        """Puts the samples that have arrived into the recording, for so long at most;
        whether some are left."""

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

    A guest that starts again is followed: until its kernel can be found, or for
    ``_BOOT_SECONDS``, it is looked for anew.

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
        self._lost = False
        self._booting_until = 0.0
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
        try:
            while not self._closing:
                if self._paused:
                    self.phase = Phase.PAUSED
                    self._rest(while_paused=True)
                else:
                    self._sample()
        except KvmgdbError as error:
            self.error = error
        except BaseException as error:  # for whoever waits for the thread
            self._failure = error
        finally:
            self.phase = Phase.ENDED

    def _sample(self) -> None:
        """Until a pause or the end, or until the guest has to be looked at anew."""
        self.phase = Phase.STARTING
        try:
            source = self._make_source()
        except TargetGoneError:
            raise
        except KvmgdbError:
            # Half of a kernel may look like damage.
            if time.monotonic() > self._booting_until:
                raise
            self._rest(while_paused=False, seconds=_LOOK_AGAIN_SECONDS)
            return
        made = time.monotonic()
        self._slices.clear()
        self.phase = Phase.SAMPLING
        self.started = True
        try:
            behind = False
            while not self._closing and not self._paused:
                source.wait(0 if behind else _SLICE)
                with self._lock:
                    behind = source.drain(_SLICE)
                now = time.monotonic()
                if now < made + _LOOK_AGAIN_SECONDS:
                    continue
                if source.kernel is not None and self._lost:
                    self._booting_until = now + _BOOT_SECONDS
                    break
                if source.kernel is None and now < self._booting_until:
                    break
        except RebootedError:
            self._booting_until = time.monotonic() + _BOOT_SECONDS
        except TargetGoneError:
            raise
        except KvmgdbError:
            # What was known of the guest may not hold any more: look anew, but not
            # without end at what cannot be read at all.
            now = time.monotonic()
            if now >= made + _LOOK_AGAIN_SECONDS:
                self._booting_until = now + _BOOT_SECONDS
            elif now > self._booting_until:
                raise
        finally:
            self._lost = False
            self._close(source)

    def _close(self, source: Source) -> None:
        with self._lock:
            source.close()

    def _rest(self, while_paused: bool, seconds: float | None = None) -> None:
        """Until that changes, or for so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._paused != while_paused, seconds)

    # -- reading

    def update(self) -> None:
        """Takes in what has been sampled, and lets go of what is too old."""
        with self._lock:
            columns = self.recording.take_samples()
        now = time.monotonic()
        if len(columns.time_ns):
            self._slices.append((now, columns))
            self._lost = self._is_lost(columns)
        if self.phase is not Phase.SAMPLING:
            return
        while self._slices and self._slices[0][0] < now - self.seconds:
            self._slices.popleft()

    def _is_lost(self, columns: Columns) -> bool:
        """Whether the guest's kernel is another than the one that is known: after a
        reset the old one lies in memory as it did, but nothing runs there."""
        frames, of_node = self.recording.frames, self.recording.node_frames
        ran = strange = 0
        for stack, state in zip(columns.stack, columns.state, strict=True):
            if stack and state == State.RUNNING:
                frame = frames[of_node[stack]]
                ran += 1
                strange += frame.kind is FrameKind.UNKNOWN and frame.address >= _KERNEL_HALF
        return ran >= _FEWEST_SAMPLES and strange > _LOST_PART * ran

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
