"""What the commands that read a guest's kernel share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import click

from kvmgdb.cli.terminal import note
from kvmgdb.linux.attach import stopped
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.target import parse_target

_TRIES = 3


class _Damaged(Protocol):
    @property
    def damage(self) -> str | None: ...


ListT = TypeVar("ListT", bound=_Damaged)


@contextmanager
def attached(target: str | None) -> Iterator[Machine]:
    """The machine that the user named, given back as it was found."""
    machine = parse_target(target).open()
    try:
        yield machine
    finally:
        machine.close()


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


@contextmanager
def stopped_for(machine: Machine) -> Iterator[None]:
    """Stops a machine that runs, and says for how long it stood."""
    was_running = machine.running
    begin = time.monotonic()
    with stopped(machine):
        yield
    if was_running:
        note(f"the guest was stopped for {1e3 * (time.monotonic() - begin):.0f} ms")


def read_list(machine: Machine, read: Callable[[], ListT]) -> ListT:
    """A list of the kernel's, read while the guest runs. Where it keeps changing
    under our hands, it is read with the guest stopped; what is damaged even then
    is shown as far as it goes."""
    result = read()
    for _ in range(_TRIES - 1):
        if result.damage is None:
            return result
        result = read()
    if result.damage is not None:
        with stopped_for(machine):
            result = read()
    if result.damage is not None:
        note(f"this is not all: {result.damage}")
    return result
