"""``kvmgdb serve``: a GDB server for a virtual machine."""

from __future__ import annotations

import click

from kvmgdb.cli.serving import DEFAULT_LISTEN, open_for_check
from kvmgdb.cli.serving import serve as serve_debuggee
from kvmgdb.cli.terminal import note
from kvmgdb.machine.target import parse_target
from kvmgdb.rsp.debuggee import Debuggee
from kvmgdb.rsp.server import ListenAddress


@click.command(epilog="Example: kvmgdb serve vm1, and elsewhere gdb -ex 'target remote :1234'")
@click.argument("target", required=False)
@click.option(
    "--listen",
    default=DEFAULT_LISTEN,
    show_default=True,
    metavar="ADDR",
    help="HOST:PORT, unix:PATH, or - for standard input and output (gdb's `target remote |`).",
)
def serve(target: str | None, listen: str) -> None:
    """Serve a virtual machine to GDB.

    The guest runs on until a GDB connects, and again when the last one has gone.
    Ctrl-C ends the server and gives the guest back as it was found.
    """
    address = ListenAddress.parse(listen)
    found = parse_target(target)
    machine = open_for_check(found)
    serve_debuggee(Debuggee(found.open, note, machine), address)
