"""``kvmgdb run``: boots a kernel under the debugger."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from pathlib import Path

import click

from kvmgdb.cli.launch import Boot, Launched, kvm_unusable, launch
from kvmgdb.cli.serving import DEFAULT_LISTEN, connect_hint, serve
from kvmgdb.cli.terminal import note
from kvmgdb.demo.process import end
from kvmgdb.errors import UsageError
from kvmgdb.rsp.debuggee import Debuggee
from kvmgdb.rsp.server import ListenAddress, Server

_MAX_CPUS = 255
# How long debuggers have to learn, from the machine itself, that it has ended.
_FAREWELL = 0.3


@click.command(
    context_settings={"show_default": True},
    epilog="Example: kvmgdb run vmlinuz --initrd initrd.img --append console=ttyS0",
)
@click.argument("kernel", type=click.Path(exists=True, dir_okay=False))
@click.option("--initrd", type=click.Path(exists=True, dir_okay=False), help="Initial RAM disk.")
@click.option("--append", default="", metavar="S", help="Kernel command line.")
@click.option("--memory", default="512M", metavar="SIZE", help="Guest RAM, as 512M or 2G.")
@click.option("--cpus", default=1, type=click.IntRange(1, _MAX_CPUS), help="Number of vCPUs.")
@click.option(
    "--accel",
    default="auto",
    type=click.Choice(["auto", "kvm", "tcg"]),
    help="KVM, QEMU's translator, or KVM where it works.",
)
@click.option("-S", "halted", is_flag=True, help="Wait for GDB before the first instruction.")
@click.option("--listen", default=DEFAULT_LISTEN, metavar="ADDR", help="HOST:PORT or unix:PATH.")
def run(
    kernel: str,
    initrd: str | None,
    append: str,
    memory: str,
    cpus: int,
    accel: str,
    halted: bool,
    listen: str,
) -> None:
    """Boot KERNEL in a new virtual machine and serve it to GDB.

    The first serial port of the machine is this terminal. The machine ends with
    kvmgdb (Ctrl-C), and kvmgdb with the machine.
    """
    address = ListenAddress.parse(listen)
    if address.socket is None:
        raise UsageError("standard output is the guest's serial port: --listen - does not work")
    if not re.fullmatch(r"[1-9]\d*[KMGkmg]?", memory):
        raise UsageError(f"{memory!r} is not a memory size", "write it as 512M or 2G")
    boot = Boot(kernel, initrd, append, memory, cpus, halted)
    if accel == "auto":
        accel = _choose_accelerator()
    with tempfile.TemporaryDirectory(prefix="kvmgdb-run-") as directory:
        machine = launch(boot, accel, Path(directory))
        try:
            status = _serve(machine, address)
        finally:
            end(machine.process)
    sys.exit(status)


def _choose_accelerator() -> str:
    reason = kvm_unusable()
    if reason:
        note(f"running under TCG, QEMU's translator: {reason}")
        return "tcg"
    note("running under KVM: a test guest ran")
    return "kvm"


def _serve(machine: Launched, listen: ListenAddress) -> int:
    debuggee = Debuggee(machine.open, note, end_machine=machine.process.terminate)

    async def until_the_end(server: Server) -> int:
        note(f"waiting for GDB: {connect_hint(server)}")
        ended = asyncio.Event()
        descriptor = os.pidfd_open(machine.process.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, ended.set)
        waits = [
            asyncio.ensure_future(ended.wait()),
            asyncio.ensure_future(server.wait_stopped()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            for wait in waits:
                wait.cancel()
        if not ended.is_set():
            return 0
        await asyncio.sleep(_FAREWELL)
        return 0 if machine.process.wait() == 0 else 1

    return serve(debuggee, listen, until_the_end)
