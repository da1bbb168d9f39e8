"""``kvmgdb run``: boots a kernel under the debugger."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from kvmgdb.cli.serving import DEFAULT_LISTEN, connect_hint, log, serve
from kvmgdb.errors import HostError, MachineError, UsageError
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.qemu import QemuMachine
from kvmgdb.rsp.debuggee import Debuggee
from kvmgdb.rsp.server import ListenAddress, Server

_PROGRAM = "qemu-system-x86_64"
_START_TIMEOUT = 10.0
_MAX_CPUS = 255


@click.command(context_settings={"show_default": True})
@click.argument("kernel", type=click.Path(exists=True, dir_okay=False))
@click.option("--initrd", type=click.Path(exists=True, dir_okay=False), help="Initial RAM disk.")
@click.option("--append", default="", metavar="S", help="Kernel command line.")
@click.option("--memory", default="512M", metavar="SIZE", help="Guest RAM, as 512M or 2G.")
@click.option("--cpus", default=1, type=click.IntRange(1, _MAX_CPUS), help="Number of vCPUs.")
@click.option("--accel", default="tcg", type=click.Choice(["tcg"]), help="How to run the guest.")
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
    if shutil.which(_PROGRAM) is None:
        raise HostError(
            f"{_PROGRAM} is not installed", remedy="on Debian: apt-get install qemu-system-x86"
        )
    with tempfile.TemporaryDirectory(prefix="kvmgdb-run-") as directory:
        monitor = Path(directory) / "qmp"
        command = [
            *(_PROGRAM, "-nodefaults", "-display", "none", "-accel", accel, "-cpu", "max"),
            *("-name", f"kvmgdb-run-{os.getpid()}", "-m", memory, "-smp", str(cpus)),
            *("-chardev", "stdio,id=serial,signal=on", "-serial", "chardev:serial"),
            *("-qmp", f"unix:{monitor},server=on,wait=off"),
            *("-kernel", kernel, "-append", append),
            *(("-initrd", initrd) if initrd else ()),
            *(("-S",) if halted else ()),
        ]
        # setpriv (util-linux): QEMU must not outlive a kvmgdb that is killed.
        machine = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *command])
        try:
            _wait_for_monitor(machine, monitor)
            status = _serve(machine, SocketAddress(path=str(monitor)), address)
        finally:
            _end(machine)
    sys.exit(status)


def _wait_for_monitor(machine: subprocess.Popen[bytes], monitor: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while not monitor.exists():
        if machine.poll() is not None:
            raise MachineError(f"QEMU did not start (exit status {machine.returncode})")
        if time.monotonic() > deadline:
            raise MachineError("QEMU did not start within 10 s")
        time.sleep(0.02)


def _serve(machine: subprocess.Popen[bytes], monitor: SocketAddress, listen: ListenAddress) -> int:
    debuggee = Debuggee(lambda: QemuMachine.open_qmp(monitor), log, end_machine=machine.terminate)

    async def until_the_end(server: Server) -> int:
        log(f"waiting for GDB: {connect_hint(server)}")
        ended = asyncio.Event()
        descriptor = os.pidfd_open(machine.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, ended.set)
        try:
            done = asyncio.ensure_future(server.wait_stopped())
            await asyncio.wait(
                [asyncio.ensure_future(ended.wait()), done], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        if not ended.is_set():
            return 0
        # Debuggers learn of the end from the machine's own connection.
        await asyncio.sleep(0.3)
        return 0 if machine.wait() == 0 else 1

    return serve(debuggee, listen, until_the_end)


def _end(machine: subprocess.Popen[bytes]) -> None:
    if machine.poll() is None:
        machine.terminate()
        try:
            machine.wait(5)
        except subprocess.TimeoutExpired:
            machine.kill()
            machine.wait()
