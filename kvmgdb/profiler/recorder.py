"""Profiling one or several machines at once, each in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from kvmgdb.errors import KvmgdbError, MachineError, TargetGoneError
from kvmgdb.machine.sampling import SamplingCounters
from kvmgdb.profiler.native import EXITED, HALTED, RUNNING, STOPPED
from kvmgdb.profiler.recording import Recording
from kvmgdb.profiler.session import Session

_SLICE = 0.1


class Recorder:
    """Runs sessions that fill one recording.

    ``ended`` says of each session that ended before its time why it did.
    """

    def __init__(self, recording: Recording, sessions: list[Session]) -> None:
        self.recording = recording
        self.sessions = sessions
        self.ended: dict[Session, KvmgdbError] = {}
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Ends :meth:`run` soon; may be called from a signal handler."""
        self._stop.set()

    def run(self, seconds: float | None, look: Callable[[float], None]) -> None:
        """Samples for so long, or until :meth:`stop` or until every machine has
        ended. ``look`` is called now and then with the seconds that have passed."""
        begin = time.monotonic()
        threads = [
            threading.Thread(target=self._run_one, args=(session,), daemon=True)
            for session in self.sessions
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) and not self._stop.is_set():
                passed = time.monotonic() - begin
                if seconds is not None and passed >= seconds:
                    break
                left = _SLICE if seconds is None else min(_SLICE, seconds - passed)
                self._stop.wait(left)
                look(time.monotonic() - begin)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
            self.seconds = (time.monotonic_ns() - self.sessions[0].begin_ns) / 1e9
        if self._failure is not None:
            raise self._failure

    def close(self) -> SamplingCounters:
        """Ends sampling; the sums of all sessions' counters, which the recording has
        from then on too."""
        counted = [session.close() for session in self.sessions]
        total = SamplingCounters(
            *(sum(column) for column in zip(*map(_columns, counted), strict=True))
        )
        counters = self.recording.counters
        counters.errors += total.failed
        counters.missed += total.missed
        counters.dropped += total.dropped
        self.recording.duration_ns = int(1e9 * self.seconds)
        return total

    def _run_one(self, session: Session) -> None:
        try:
            behind = False
            while not self._stop.is_set():
                session.wait(0 if behind else _SLICE)
                with self._lock:
                    behind = session.drain(_SLICE)
        except KvmgdbError as error:
            self.ended[session] = error
        except BaseException as error:  # for the thread that waits for us
            self._failure = error
            self._stop.set()


def _columns(counters: SamplingCounters) -> tuple[int, ...]:
    return (
        counters.rounds,
        counters.missed,
        counters.samples,
        counters.dropped,
        counters.failed,
    )


class NoSamplesError(MachineError):
    """A recording has nothing to show."""


def check_samples(recorder: Recorder, idle: bool) -> None:
    """Raises NoSamplesError, which says why, where a recording that has ended has
    nothing to show; ``idle``: idle vCPUs are to be shown too."""
    recording = recorder.recording
    seen: Counter[int] = Counter()
    for session in recorder.sessions:
        seen.update(session.states)
    ran = seen[RUNNING] + seen[EXITED]
    skipped = sum(session.skipped for session in recorder.sessions)
    if any(recording.columns.stack) or (idle and len(recording)):
        return
    remedy = ""
    if ran and skipped:
        reason = "no sample is of that task or vCPU"
    elif ran:
        reason = "nothing ran but what was left out"
    elif any(isinstance(error, TargetGoneError) for error in recorder.ended.values()):
        reason = "the machine ended before the first one"
    elif recording.counters.errors:
        reason = "no vCPU stopped in time for one"
    elif seen[STOPPED]:
        reason = "the machine was paused all the time"
    elif seen[HALTED]:
        reason, remedy = "all vCPUs were idle all the time", "--idle shows idle vCPUs too"
    else:
        reason, remedy = "it ended before the first was due", "record for a longer time"
    raise NoSamplesError(f"there are no samples: {reason}", remedy)
