"""``kvmgdb gdb``: a server, and the user's GDB connected to it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import click

from kvmgdb.cli.serving import log, open_for_check, serve
from kvmgdb.errors import HostError
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.target import parse_target
from kvmgdb.rsp.debuggee import Debuggee
from kvmgdb.rsp.server import ListenAddress, Server


def commands_file() -> Path:
    """The GDB commands of kvmgdb, in a checkout or in an installed package."""
    for directory in (
        Path(__file__).parents[2] / "gdb-scripts",
        Path(sys.prefix) / "share" / "kvmgdb" / "gdb-scripts",
    ):
        if (directory / "kvmgdb-gdb.py").is_file():
            return directory / "kvmgdb-gdb.py"
    raise HostError("kvmgdb's GDB commands (gdb-scripts/) are not installed")


def find_gdb() -> str:
    """The GDB to start. Raises HostError where there is none."""
    found = shutil.which("gdb")
    if found is None:
        raise HostError("gdb is not installed", remedy="on Debian: apt-get install gdb")
    return found


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("target", required=False)
@click.argument("gdb_arguments", nargs=-1, type=click.UNPROCESSED)
def gdb(target: str | None, gdb_arguments: tuple[str, ...]) -> None:
    """Serve a virtual machine and start GDB on it.

    Arguments after -- go to GDB: kvmgdb gdb vm1 -- -ex 'info threads'.
    """
    program = find_gdb()
    found = parse_target(target)
    machine = open_for_check(found)
    with tempfile.TemporaryDirectory(prefix="kvmgdb-") as directory:
        socket = SocketAddress(path=f"{directory}/gdb")
        command = [
            program,
            *("-iex", "set pagination off") * (not sys.stdin.isatty()),
            *("-ex", f"source {commands_file()}"),
            *("-ex", f"target remote {socket.path}"),
            *gdb_arguments,
        ]

        async def run_gdb(server: Server) -> int:
            # Ctrl-C at the terminal is GDB's, which passes it on as an interrupt.
            loop = asyncio.get_running_loop()
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            process = await asyncio.create_subprocess_exec(
                *command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
            )
            return await process.wait()

        status = serve(Debuggee(found.open, log, machine), ListenAddress(socket), run_gdb)
    sys.exit(status)
