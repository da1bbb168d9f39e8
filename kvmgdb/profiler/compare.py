"""Two recordings against each other: which functions take more time, which less."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from kvmgdb.profiler.tree import CallTree, Function, Share

_NONE = Share()
_CONFIDENCE = 1.96  # standard errors to either side: 95 %


@dataclass(frozen=True)
class Change:
    """A function's part (0 to 1) of each recording's samples, in itself and in all,
    and how far chance alone makes such a difference in all go (95 %)."""

    function: Function
    old_own: float
    new_own: float
    old_total: float
    new_total: float
    noise_own: float
    noise_total: float

    @property
    def own(self) -> float:
        return self.new_own - self.old_own

    @property
    def total(self) -> float:
        return self.new_total - self.old_total

    @property
    def is_noise(self) -> bool:
        """Whether chance explains it."""
        return abs(self.own) <= self.noise_own and abs(self.total) <= self.noise_total


def compare(old: CallTree, new: CallTree) -> list[Change]:
    """All functions of either, those whose own part changed most first."""
    old_shares, new_shares = old.shares(), new.shares()
    counts = old.root.total, new.root.total
    changes = []
    for function in old_shares.keys() | new_shares.keys():
        before = old_shares.get(function, _NONE)
        after = new_shares.get(function, _NONE)
        own = _part(before.own, counts[0]), _part(after.own, counts[1])
        total = _part(before.total, counts[0]), _part(after.total, counts[1])
        changes.append(
            Change(function, *own, *total, _noise(*own, *counts), _noise(*total, *counts))
        )
    changes.sort(key=lambda change: (-abs(change.own), -abs(change.total), change.function))
    return changes


def _part(count: int, all_: int) -> float:
    return count / all_ if all_ else 0.0


def _noise(old: float, new: float, old_count: int, new_count: int) -> float:
    """The difference of two shares that are one in truth: the pooled two-proportion
    test's standard error."""
    if not old_count or not new_count:
        return 1.0
    pooled = (old * old_count + new * new_count) / (old_count + new_count)
    return _CONFIDENCE * sqrt(pooled * (1 - pooled) * (1 / old_count + 1 / new_count))
