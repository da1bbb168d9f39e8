"""The command line: one file per command, loaded when it is used."""

from __future__ import annotations

import errno
import importlib
import sys
from typing import NoReturn

import click

from kvmgdb import __version__
from kvmgdb.cli.terminal import abandon_output, is_unwritable, prepare_output, show_error
from kvmgdb.errors import (
    GuestDataError,
    HostError,
    InvalidRangeError,
    KvmgdbError,
    MemoryFault,
    NoRamError,
    UsageError,
)

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
# No command is told an address: what the guest's kernel said led to it.
_ASTRAY = (MemoryFault, NoRamError, GuestDataError, InvalidRangeError)


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


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line. Exit status: 0 done, 1 the target could not be
    reached or refused, 2 wrong usage. Raises KeyboardInterrupt."""
    prepare_output()
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        result = cli.main(arguments, prog_name="kvmgdb", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KvmgdbError as error:
        if isinstance(error, _ASTRAY) and not error.remedy:
            error.remedy = "if the guest is starting, or was reset meanwhile, try again in a moment"
        show_error(error)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        if error.errno == errno.EMFILE:
            show_error(HostError("kvmgdb cannot go on", errno.EMFILE))
            return 1
        if not is_unwritable(error):
            raise
        abandon_output()
        # A reader that has left knows why.
        if not isinstance(error, BrokenPipeError):
            show_error(HostError("the output cannot be written", error.errno or 0))
        return 1
