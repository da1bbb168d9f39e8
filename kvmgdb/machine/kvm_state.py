"""Whether a machine under KVM runs, seen from outside and without touching it.

A VMM that has paused its guest keeps its vCPUs' threads out of ``KVM_RUN``, asleep:
``/proc/PID/task/TID/syscall`` names the system call that a thread sleeps in, and the
counters of context switches tell whether it has slept between two looks.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

RUNNING = "running"
PAUSED = "paused (by its VMM)"
HALTED = "halted, or paused by its VMM"
STOPPED_BY_SIGNAL = "stopped (its VMM, by a signal)"

_IOCTL = 16  # arch/x86/entry/syscalls/syscall_64.tbl
_KVM_RUN = 0xAE80
_KVM_EXIT_HLT = 5
_EXIT_REASON = 8  # offset in struct kvm_run (include/uapi/linux/kvm.h)
# As long as this a thread sleeps that is not only on its way.
_STILL_SECONDS = 0.1
_LOOK_SECONDS = 0.01
_BUSY_LOOKS = 5
_MOST_SECONDS = 1.0
_SWITCHES = re.compile(r"^(?:non)?voluntary_ctxt_switches:\s*(\d+)", re.M)


class _Seen(Enum):
    IN_KVM = "in KVM_RUN"
    BUSY = "on a processor, or waiting for one"
    ASLEEP = "asleep in the VMM"
    STOPPED = "stopped by a signal"


@dataclass(frozen=True)
class _Look:
    """What one look at all threads showed; ``switches`` counts their context
    switches."""

    seen: frozenset[_Seen]
    switches: tuple[str, ...]


def observe(pid: int, tids: Sequence[int], exit_reasons: Callable[[], Sequence[int]]) -> str:
    """What the machine whose vCPUs run on the threads ``tids`` of ``pid`` is doing.

    ``exit_reasons`` says why each of them left ``KVM_RUN`` last: a halted vCPU of a
    VMM with an interrupt controller of its own waits as a paused one does. Takes up to
    a second; a machine that cannot be looked at is said to be running.
    """
    end = time.monotonic() + _MOST_SECONDS
    before: _Look | None = None
    since, busy = 0.0, 0
    while time.monotonic() < end:
        look = _look(pid, tids)
        if look is None or _Seen.IN_KVM in look.seen:
            return RUNNING
        if look.seen == {_Seen.STOPPED}:
            return STOPPED_BY_SIGNAL
        busy = busy + 1 if _Seen.BUSY in look.seen else 0
        if busy == _BUSY_LOOKS:
            return RUNNING
        if busy or look != before:
            since = time.monotonic()
        elif time.monotonic() - since >= _STILL_SECONDS:
            halted = _KVM_EXIT_HLT in exit_reasons()
            return HALTED if halted else PAUSED
        before = look
        time.sleep(_LOOK_SECONDS)
    return RUNNING


def exit_reasons(memory_fd: int, places: Iterable[int]) -> list[int]:
    """Why vCPUs left KVM_RUN last (KVM_EXIT_*), as their kvm_run pages at ``places``
    (HVA; 0: not known) of the VMM's memory say."""
    reasons = []
    for place in places:
        if place:
            with contextlib.suppress(OSError):
                data = os.pread(memory_fd, 4, place + _EXIT_REASON)
                reasons.append(int.from_bytes(data, "little"))
    return reasons


def _look(pid: int, tids: Sequence[int]) -> _Look | None:
    seen, switches = set(), []
    for tid in tids:
        directory = f"/proc/{pid}/task/{tid}"
        try:
            with open(f"{directory}/status") as file:
                status = file.read()
            with open(f"{directory}/syscall") as file:
                words = file.read().split()
        except OSError:
            return None
        seen.add(_thread(status, words))
        switches += _SWITCHES.findall(status)
    return _Look(frozenset(seen), tuple(switches))


def _thread(status: str, syscall: list[str]) -> _Seen:
    state = re.search(r"^State:\s*(\w)", status, re.M)
    if state is not None and state[1] in "Tt":
        return _Seen.STOPPED
    if not syscall or syscall[0] == "running":
        return _Seen.BUSY
    if syscall[0] == str(_IOCTL) and int(syscall[2], 16) == _KVM_RUN:
        return _Seen.IN_KVM
    return _Seen.ASLEEP
