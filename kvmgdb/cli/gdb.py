"""``kvmgdb gdb``: a server, and the user's GDB connected to it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import click

from kvmgdb.cli.serving import open_for_check, serve
from kvmgdb.cli.terminal import note
from kvmgdb.errors import HostError, KvmgdbError
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.identity import identify
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.target import Target, parse_target
from kvmgdb.rsp.debuggee import Debuggee
from kvmgdb.rsp.server import ListenAddress, Server
from kvmgdb.symbols.debug_files import find_debug_file


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


def own_vmlinux(target: Target, machine: Machine | None) -> Path | None:
    """The user's vmlinux with source lines that belongs to the guest's kernel, if
    one is found; others that lie at hand are named."""
    opened = target.open() if machine is None else machine
    try:
        identity = identify(find_kernel(opened))
    except KvmgdbError:
        return None
    finally:
        if machine is None:
            opened.close()
    if identity.build_id is None:
        return None
    files = find_debug_file(identity.build_id, identity.release)
    for path, build_id in files.strangers:
        note(
            f"warning: {path} is of another kernel (build ID {build_id}, the guest's is "
            f"{identity.build_id}): it is not used"
        )
    if files.found is not None:
        note(f"source lines come from {files.found}")
    return files.found


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: kvmgdb gdb vm1 -- -ex 'info threads'",
)
@click.argument("target", required=False)
@click.argument("gdb_arguments", nargs=-1, type=click.UNPROCESSED)
def gdb(target: str | None, gdb_arguments: tuple[str, ...]) -> None:
    """Serve a virtual machine and start GDB on it.

    Arguments after -- go to GDB: kvmgdb gdb vm1 -- -ex 'info threads'. A vmlinux
    that belongs to the guest's kernel is found by its build ID in the usual places,
    and gives source lines; without one GDB still has all symbols and types.
    """
    program = find_gdb()
    found = parse_target(target)
    machine = open_for_check(found)
    vmlinux = own_vmlinux(found, machine)
    with tempfile.TemporaryDirectory(prefix="kvmgdb-") as directory:
        socket = SocketAddress(path=f"{directory}/gdb")
        command = [
            program,
            *((str(vmlinux),) if vmlinux is not None else ()),
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

        status = serve(Debuggee(found.open, note, machine), ListenAddress(socket), run_gdb)
    sys.exit(status)
