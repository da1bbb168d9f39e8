"""Guests that many tests share: they give way to the test that runs.

A booted guest keeps its CPUs busy, and those that other tests wait for would take
most of a small host. Each QEMU is a session of its own, so that the scheduler's
autogroup (sched(7)) says how much it gets; a host without has them compete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path

_LEAST = 19
_shared: list[tuple[str, Callable[[], int | None]]] = []


def share(fixture: str, pid: Callable[[], int | None]) -> None:
    """From now on the guest with ``pid`` is there for tests that use ``fixture``."""
    _shared.append((fixture, pid))


def give_way(fixtures: Collection[str]) -> None:
    """Before a test that uses ``fixtures``: theirs run as ever, others in the gaps."""
    for fixture, pid in _shared:
        number = pid()
        if number is not None:
            with contextlib.suppress(OSError):
                nice = 0 if fixture in fixtures else _LEAST
                Path(f"/proc/{number}/autogroup").write_text(str(nice))
