"""How fast a guest gets on, and how much of its time something costs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

Work = Callable[[], int]


class GuestTime:
    """A guest that counts its rounds (``rounds()``, all vCPUs). ``threads`` are the
    host's IDs of the vCPU threads of the process ``pid``. What these waited for a
    CPU of the host (schedstat) does not count: on a busy one it is no cost of ours."""

    def __init__(self, rounds: Callable[[], int], pid: int, threads: Sequence[int]) -> None:
        self._rounds = rounds
        self._waits = [Path(f"/proc/{pid}/task/{thread}/schedstat") for thread in threads]

    def speed(self, seconds: float, work: Work | None = None) -> tuple[float, int]:
        """Rounds a second and vCPU, and what ``work`` says it did meanwhile."""
        before, waited, begin = self._rounds(), self._waited(), time.perf_counter()
        done = work() if work is not None else 0
        left = seconds - (time.perf_counter() - begin)
        if left > 0:
            time.sleep(left)
        passed = len(self._waits) * (time.perf_counter() - begin) - (self._waited() - waited)
        return (self._rounds() - before) / passed, done

    def share_left(
        self, seconds: float, prepare: Callable[[], AbstractContextManager[Work]]
    ) -> tuple[float, int]:
        """Speed while the prepared work goes on, as a share of that before and after
        it, and what it says it did."""
        before, _ = self.speed(seconds)
        with prepare() as work:
            during, done = self.speed(seconds, work)
        after, _ = self.speed(seconds)
        return 2 * during / (before + after), done

    def _waited(self) -> float:
        """Seconds that the vCPU threads were ready to run, and did not."""
        return sum(int(path.read_text().split()[1]) for path in self._waits) / 1e9
