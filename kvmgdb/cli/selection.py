"""The options by which commands choose among samples, and give them roots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from kvmgdb.profiler.view import Root, View

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

by_option = click.option(
    "--by",
    type=click.Choice([root.value for root in Root]),
    multiple=True,
    help="A frame of its own below all stacks; given twice, two.",
)
"""Gives a command ``by``: see :func:`roots_of`."""


def view_options(command: CommandT) -> CommandT:
    """Gives a command ``by``, ``idle``, ``task`` and ``vcpu``: see :func:`view_of`."""
    for option in reversed(
        (
            by_option,
            click.option("--idle", is_flag=True, help="Count halted vCPUs too."),
            click.option("--task", metavar="NAME|PID|TID", help="This task only."),
            click.option("--vcpu", type=click.IntRange(0, 65534), help="This vCPU only."),
        )
    ):
        command = option(command)
    return command


def roots_of(by: tuple[str, ...]) -> tuple[Root, ...]:
    return tuple(dict.fromkeys(map(Root, by)))


def view_of(by: tuple[str, ...], idle: bool, task: str | None, vcpu: int | None) -> View:
    return View(roots_of(by), idle, task, vcpu)
