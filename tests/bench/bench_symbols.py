"""Measures the file of a guest's kernel: how long it takes to make, and GDB to load.

::

    python -m tests.bench.bench_symbols [--rounds N] [--debug-package VMLINUX]

The best round of each counts: wall time, time on a CPU, and for GDB the most
memory that it had. GDB loads the file, looks up a function at an address and
prints a structure. ``--debug-package`` is the same kernel's vmlinux with DWARF of
its distribution (linux-image-...-dbg), for comparison. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvmgdb.demo.guest import GuestOptions, LinuxGuest
from kvmgdb.demo.kernel import fetch_kernel
from kvmgdb.linux.attach import find_kernel
from kvmgdb.machine.target import parse_target
from kvmgdb.symbols import build_vmlinux
from tests.support.require import PYPI_GDB, SYSTEM_GDB, why_not

# The most that GDB had: not its ru_maxrss, which begins with that of its parent.
_MEMORY = "shell grep VmHWM /proc/$PPID/status"
_QUESTIONS = ("info scope vfs_read", "ptype struct task_struct")


@dataclass
class Best:
    """The best of several rounds: seconds, and KiB of resident memory."""

    wall: float = float("inf")
    cpu: float = float("inf")
    memory: int = 0

    def add(self, wall: float, cpu: float, memory: int = 0) -> None:
        self.wall = min(self.wall, wall)
        self.cpu = min(self.cpu, cpu)
        self.memory = min(self.memory, memory) if self.memory else memory


def measure(work: Callable[[], object], rounds: int) -> Best:
    best = Best()
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        best.add(time.perf_counter() - wall, time.process_time() - cpu)
    return best


def run_gdb(path: str, file: Path | None, rounds: int) -> Best:
    """GDB from its start to the answers, or with no file to its prompt."""
    words = [path, "-nx", "-batch", "-iex", "set debuginfod enabled off"]
    if file is not None:
        words += [word for question in _QUESTIONS for word in ("-ex", question)]
        words.append(str(file))
    words += ["-ex", _MEMORY]
    best = Best()
    for _ in range(rounds):
        wall = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        output = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        ).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        memory = re.search(r"VmHWM:\s+(\d+) kB", output)
        assert memory, output
        best.add(time.perf_counter() - wall, cpu, int(memory[1]))
    return best


def show(title: str, best: Best) -> None:
    memory = f"{best.memory >> 10:>8} MiB" if best.memory else ""
    print(f"{title:52}{best.wall * 1e3:>10.0f} ms{best.cpu * 1e3:>10.0f} ms{memory}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--debug-package", type=Path, metavar="VMLINUX")
    options = parser.parse_args()
    print(f"{'':52}{'wall':>13}{'CPU':>13}{'memory':>12}")
    with (
        tempfile.TemporaryDirectory(prefix="kvmgdb-bench-") as directory,
        LinuxGuest(fetch_kernel(), GuestOptions(name="kvmgdb-bench")) as guest,
    ):
        guest.wait_ready()
        machine = parse_target(str(guest.pid)).open()
        try:
            kernel = find_kernel(machine)
            show(
                "build, types not read before",
                measure(lambda: build_vmlinux(find_kernel(machine)), options.rounds),
            )
            show("build", measure(lambda: build_vmlinux(kernel), options.rounds))
            data = build_vmlinux(kernel).data
        finally:
            machine.close()
        file = Path(directory) / "vmlinux"
        file.write_bytes(data)
        print(f"{'file':52}{len(data) >> 10:>10} KiB")
        for need, path in (("gdb", SYSTEM_GDB), ("gdb18", PYPI_GDB)):
            if why_not(need):
                continue
            show(f"{need}, empty", run_gdb(path, None, options.rounds))
            show(f"{need}, our file", run_gdb(path, file, options.rounds))
            if options.debug_package is not None:
                show(f"{need}, debug package", run_gdb(path, options.debug_package, options.rounds))


if __name__ == "__main__":
    main()
