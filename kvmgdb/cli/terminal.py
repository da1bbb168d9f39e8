"""How commands print: nothing that a guest made up reaches the terminal as it is."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

import click
from rich.console import Console, JustifyMethod
from rich.table import Table

from kvmgdb.errors import KvmgdbError
from kvmgdb.printable import printable, printable_lines

# What a write to a file, a pipe or a terminal fails with.
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_ANY_WIDTH = 1 << 16


def prepare_output() -> None:
    """What the terminal's character set does not have is shown by its number."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # closed, or a test's own
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def echo(line: str = "", err: bool = False) -> None:
    """Prints a line."""
    click.echo(printable(line), err=err)


def note(text: str) -> None:
    """A remark that is no part of the output: GDB, or a file, may have that."""
    click.echo(f"kvmgdb: {printable_lines(text)}", err=True)


def show_error(error: KvmgdbError) -> None:
    name = click.style("kvmgdb: ", fg="red", bold=True)
    click.echo(name + printable_lines(str(error)), err=True)
    if error.remedy:
        click.echo(f"        {printable_lines(error.remedy)}", err=True)


def print_table(titles: dict[str, bool], rows: list[list[str]], fold: bool = False) -> None:
    """``titles`` says of each column whether it holds numbers. In a terminal that is too
    narrow, cells are cut, or with ``fold`` go on in a line of their own; elsewhere a row
    is a line, however long."""
    table = Table(box=None, pad_edge=False)
    for title, numeric in titles.items():
        justify: JustifyMethod = "right" if numeric else "left"
        table.add_column(title, justify=justify, no_wrap=not fold, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        console.print(table)
        return
    console = Console(width=_ANY_WIDTH, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def is_unwritable(error: OSError) -> bool:
    """Whether an output that this process wrote to has failed."""
    return error.filename is None and error.errno in _UNWRITABLE


def abandon_output() -> None:
    """Whatever is still to be written to standard output is lost: it has failed."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
