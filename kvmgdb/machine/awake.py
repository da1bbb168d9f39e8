"""Whether to wait awake for what comes at once.

On an idle host to fall asleep, and to be woken up, takes longer than most answers
do. On a busy one who waits awake uses up its share of the CPU: it is made to wait
behind others then, while one that sleeps is woken at once.
"""

from __future__ import annotations

import time

# In seconds. Who finds so much time gone between two looks had no CPU meanwhile.
_PREEMPTED = 0.001
# How long nobody waits awake after that.
_BUSY = 0.1


class Wakefulness:
    """What the waits of a process have noticed of the host's CPUs."""

    def __init__(self) -> None:
        self._busy_until = 0.0

    @property
    def pays(self) -> bool:
        return time.perf_counter() >= self._busy_until

    def look(self, last: float) -> float:
        """The time (``perf_counter``), by one who waits awake and looked at ``last``."""
        now = time.perf_counter()
        if now - last > _PREEMPTED:
            self.preempted()
        return now

    def preempted(self) -> None:
        """Somebody else needed the CPU on which one waited awake."""
        self._busy_until = time.perf_counter() + _BUSY


# The CPUs are the same for all that waits in a process.
wakefulness = Wakefulness()
