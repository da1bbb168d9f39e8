"""``kvmgdb demo``: boots a stock kernel and shows GDB debugging it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click
from rich.console import Console
from rich.text import Text

from kvmgdb.demo.batch import run_batch
from kvmgdb.demo.guest import GuestOptions, LinuxGuest
from kvmgdb.demo.kernel import fetch_kernel
from kvmgdb.demo.process import private_directory
from kvmgdb.demo.progress import step
from kvmgdb.demo.server import Server
from kvmgdb.demo.tour import ask_guest, tour
from kvmgdb.errors import HostError, MachineError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(epilog="Example: kvmgdb demo --batch")
@click.option("--batch", is_flag=True, help="Do not hand over to you: show GDB at work, then end.")
@click.option("--gdb", default="gdb", show_default=True, metavar="PROGRAM", help="The GDB to use.")
def demo(batch: bool, gdb: str) -> None:
    """Boot a stock Debian kernel in QEMU and debug it with GDB.

    The kernel is fetched as a package, never installed. On a terminal you get
    GDB, connected to the guest; with --batch (and without a terminal) GDB is
    driven through a short tour, and every step of it is checked.
    """
    if shutil.which(gdb) is None:
        raise HostError(f"there is no program {gdb}", remedy="install gdb, or name one with --gdb")
    console = Console(highlight=False)
    with _terminable():
        kernel = fetch_kernel()
        with LinuxGuest(kernel, GuestOptions(name="kvmgdb-demo")) as guest:
            with step(f"booting Linux {kernel.release} in QEMU: two vCPUs, KASLR on", console):
                guest.wait_ready()
            facts = ask_guest(guest)
            before = guest.progress()
            with Server(str(guest.pid)) as server:
                if batch or not sys.stdin.isatty():
                    command = f"kvmgdb serve {guest.pid} --listen unix:{server.socket}"
                    console.print(Text(command), soft_wrap=True)
                    run_batch(gdb, str(server.socket), tour(facts), console)
                else:
                    _hand_over(gdb, str(server.socket), console)
            _prove_alive(guest, before, console)


@contextmanager
def _terminable() -> Iterator[None]:
    """Everything is cleaned up, however the block ends: also by Ctrl-C, SIGTERM or SIGHUP.

    All temporary files go below one directory, and no signal comes between
    its making and the moment that its removal is certain.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:  # one is enough: the next would cut the cleaning short
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    previous = {number: signal.signal(number, leave) for number in _SIGNALS}
    before = os.environ.get("TMPDIR")
    try:
        with private_directory("demo") as directory:
            os.environ["TMPDIR"] = directory
            tempfile.tempdir = None  # tempfile asks for TMPDIR again
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    finally:
        os.environ.pop("TMPDIR", None)
        if before is not None:
            os.environ["TMPDIR"] = before
        tempfile.tempdir = None
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _hand_over(gdb: str, address: str, console: Console) -> None:
    console.print(
        Text.assemble(
            "\nGDB is yours, connected to the guest, which stands still. Try:\n\n",
            ("  info threads                  ", "cyan"),
            "the two vCPUs, and what they run\n",
            ("  backtrace                     ", "cyan"),
            "where it stands\n",
            ("  break vfs_read                ", "cyan"),
            "a function by name: then `continue`\n",
            ("  ptype struct task_struct      ", "cyan"),
            "a type of the guest's kernel\n",
            ("  print init_task.comm          ", "cyan"),
            "a variable\n",
            ("  watch *(long *) &jiffies_64   ", "cyan"),
            "then `continue`\n",
            ("  info registers cr3 idtr_base  ", "cyan"),
            "control registers\n",
            ("  monitor help                  ", "cyan"),
            "what the server can do\n",
            ("  detach, quit                  ", "cyan"),
            "the guest runs on, and the demo ends\n",
        )
    )

    def stay(number: int, frame: FrameType | None) -> None:
        """Ctrl-C is for GDB, which shares our terminal."""

    previous = signal.signal(signal.SIGINT, stay)
    try:
        subprocess.run([gdb, "-q", "-ex", f"target remote {address}"], check=False)
    finally:
        signal.signal(signal.SIGINT, previous)


def _prove_alive(guest: LinuxGuest, before: int, console: Console) -> None:
    """Raises MachineError where the guest does not run on after all that."""
    if not guest.makes_progress():
        raise MachineError("the guest makes no progress after GDB detached")
    after = guest.progress()
    console.print()
    console.print(Text("-- The guest runs on", style="bold"))
    console.print(f"its workers' counter: {before} before GDB came, {after} now, and growing")
