"""The command line: one file per command, loaded when it is used."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from kvmgdb import __version__
from kvmgdb.errors import KvmgdbError, UsageError

_COMMANDS = (
    "list",
    "serve",
    "gdb",
    "run",
    "info",
    "ps",
    "dmesg",
    "modules",
    "backtrace",
    "symbols",
    "profile",
    "vmlinux",
    "report",
    "top",
    "demo",
)


class LazyGroup(click.Group):
    """A group that imports a command's module when it is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"kvmgdb.cli.{name}")
        command = getattr(module, name if name != "list" else "list_machines")
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kvmgdb")
def cli() -> None:
    """See inside any Linux virtual machine, from the host: nothing installed in
    the guest, no restart, no symbol files.

    TARGET is a PID, a virtual machine's name, qmp:PATH (QEMU's monitor socket) or
    rsp:HOST:PORT (any GDB stub). Without one, the only VM on the host is taken.
    """


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command line. Exit status: 0 done, 1 the target could not be
    reached or refused, 2 wrong usage."""
    try:
        return cli.main(arguments, prog_name="kvmgdb", standalone_mode=True)
    except KvmgdbError as error:
        show_error(error)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:
        # The reader of our output has left; it knows why.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def show_error(error: KvmgdbError) -> None:
    click.echo(click.style("kvmgdb: ", fg="red", bold=True) + str(error), err=True)
    if error.remedy:
        click.echo(f"        {error.remedy}", err=True)
