"""Measures how long GDB takes from its start to the first backtrace with names.

::

    python -m tests.bench.bench_first_backtrace [--rounds N] [--debug VMLINUX]

On a paused stock guest: a server that nobody has asked before (cold), the same
one again (warm), and GDB alone with the file that the server made (its own load
time). ``--debug`` is the kernel's vmlinux with DWARF, from its debug package: GDB
loads it in the same rounds. The best round counts; nothing is asserted.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from kvmgdb.demo.guest import GuestOptions, LinuxGuest
from kvmgdb.demo.kernel import fetch_kernel
from kvmgdb.linux.attach import find_kernel
from kvmgdb.machine.target import parse_target
from kvmgdb.symbols import build_vmlinux
from tests.support.require import PYPI_GDB, SYSTEM_GDB, why_not
from tests.support.server import KvmgdbServer

_GDBS = {"gdb": SYSTEM_GDB, "gdb18": PYPI_GDB}


# GDB's own largest size: what wait4() says is at least that of this process.
_SIZE = ("-ex", "shell grep VmHWM /proc/$PPID/status")

Run = tuple[float, float, float]


def run(gdb: str, *arguments: str) -> Run:
    """Seconds from GDB's start to its end, those of them that it computed, and its
    largest size in MiB."""
    command = [gdb, "-nx", "-q", "-batch", "-iex", "set debuginfod enabled off", *arguments, *_SIZE]
    begin = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        spent = time.monotonic() - begin
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode != 0:
        raise SystemExit(f"{gdb} failed: {text}")
    if "target remote" in " ".join(arguments) and " in " not in text.partition("#1 ")[2]:
        raise SystemExit(f"{gdb} shows no backtrace with names: {text}")
    size = re.search(r"VmHWM:\s*(\d+) kB", text)
    assert size, text
    return spent, usage.ru_utime + usage.ru_stime, int(size[1]) / 1024


def write_file(pid: int, path: Path) -> None:
    """The file that a server hands to GDB."""
    machine = parse_target(str(pid)).open()
    try:
        path.write_bytes(build_vmlinux(find_kernel(machine)).data)
    finally:
        machine.close()


def measure(gdb: str, pid: int, file: Path, debug: str | None) -> dict[str, Run]:
    backtrace = ("-ex", "thread 2", "-ex", "backtrace")
    with KvmgdbServer(str(pid)) as server:
        connect = ("-ex", f"target remote {server.address}", *backtrace)
        results = {"cold server": run(gdb, *connect), "warm server": run(gdb, *connect)}
    results["GDB alone, the same file"] = run(gdb, str(file), "-ex", "info line schedule")
    if debug is not None:
        results["GDB alone, the debug package's"] = run(gdb, debug, "-ex", "info line schedule")
    results["GDB alone, no file"] = run(gdb)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--debug", help="vmlinux with DWARF of the same kernel")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="kvmgdb-bench-") as directory,
        LinuxGuest(fetch_kernel(), GuestOptions(name="kvmgdb-bench")) as guest,
    ):
        guest.wait_ready()
        file = Path(directory) / "vmlinux"
        write_file(guest.pid, file)
        for name, path in _GDBS.items():
            if why_not(name):
                continue
            rounds = [
                measure(path, guest.pid, file, arguments.debug) for _ in range(arguments.rounds)
            ]
            for what in rounds[0]:
                seconds, computed, size = (
                    min(result[what][column] for result in rounds) for column in range(3)
                )
                print(
                    f"{name:<6} {what:<32} {seconds:6.2f} s, of which GDB computes "
                    f"{computed:5.2f} s {size:6.0f} MiB"
                )


if __name__ == "__main__":
    main()
