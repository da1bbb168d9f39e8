"""Measures what it takes to read a Linux guest's kernel, on a paused stock guest.

::

    python -m tests.bench.bench_linux [--rounds N] [--suite SUITE]

Wall time and, because other work on the host adds to that, the time on a CPU;
the best round of each counts. Nothing is asserted: the table says what was
wanted. Where there is a ``kallsyms-finder`` (``pip install vmlinux-to-elf``), it
finds the same symbols in a dump of the same guest's kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvmgdb.demo.guest import GuestOptions
from kvmgdb.demo.kernel import DEFAULT_PACKAGE, fetch_kernel
from kvmgdb.linux.attach import find_kernel, stopped
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.locate import copy_image
from kvmgdb.linux.native import StackCopy
from kvmgdb.linux.stacks import Unwinder
from kvmgdb.linux.tasks import TaskList, list_tasks
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.target import parse_target
from tests.linux.probed import ProbedGuest

UNWINDS = 2000
# What is wanted for a kernel of up to this many symbols, and for larger ones.
SYMBOLS_SMALL, SMALL_SECONDS, LARGE_SECONDS = 100_000, 0.150, 0.300
AGAIN_SECONDS = 0.030
TASKS, TASKS_SECONDS = 200, 0.100
BASELINE = "kallsyms-finder"
BASELINE_SECONDS = 600


@dataclass
class Measurement:
    """Seconds; ``wanted`` too."""

    title: str
    wanted: float | None
    wall: float = float("inf")
    cpu: float = float("inf")

    def run(self, work: Callable[[], object], times: int = 1) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(times):
            work()
        self.wall = min(self.wall, (time.perf_counter() - wall) / times)
        self.cpu = min(self.cpu, (time.process_time() - cpu) / times)


def _in_units(seconds: float | None) -> str:
    if seconds is None or seconds != seconds:
        return ""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def _deepest(unwinder: Unwinder, tasks: TaskList) -> tuple[dict[str, int], list[StackCopy], int]:
    """The longest kernel stack of a sleeping task: registers, its copy, frames."""
    best: tuple[dict[str, int], list[StackCopy], int] = ({}, [], 0)
    for task in tasks:
        if task.running:
            continue
        sp = task.object.member("thread").member("sp").integer()
        frame = unwinder.kernel.object("inactive_task_frame", sp).snapshot()
        registers = {
            "ip": frame.member("ret_addr").integer(),
            "bp": frame.member("bp").integer(),
            "sp": sp + frame.size,
        }
        stack = task.object.member("stack").integer()
        copies = [StackCopy(stack, unwinder.kernel.read(stack, 16 << 10))]
        count = len(unwinder.tables.unwind(registers, copies, from_call=True).frames)
        if count > best[2]:
            best = (registers, copies, count)
    return best


def _measure(machine: Machine, rounds: int) -> list[Measurement]:
    symbols = Measurement("attached to full symbol table", None)
    again = Measurement("the same again", AGAIN_SECONDS)
    types = Measurement("BTF index", 0.100)
    tables = Measurement("unwind tables of kernel and modules", None)
    listed = Measurement("list of all tasks", None)
    unwound = Measurement("one kernel stack, from Python", None)
    symbols.run(lambda: find_kernel(machine))
    for _ in range(rounds):
        again.run(lambda: find_kernel(machine))
        kernel = find_kernel(machine)
        types.run(lambda kernel=kernel: kernel.types)  # type: ignore[misc]
        tables.run(lambda kernel=kernel: Unwinder(kernel))  # type: ignore[misc]
        listed.run(lambda kernel=kernel: list_tasks(kernel))  # type: ignore[misc]
    kernel = find_kernel(machine)
    unwinder, tasks = Unwinder(kernel), list_tasks(kernel)
    registers, copies, frames = _deepest(unwinder, tasks)
    listed.title += f" ({len(tasks)})"
    listed.wanted = TASKS_SECONDS * len(tasks) / TASKS
    symbols.title += f" ({len(kernel.symbols)})"
    small = len(kernel.symbols) <= SYMBOLS_SMALL
    symbols.wanted = SMALL_SECONDS if small else LARGE_SECONDS
    native = Measurement(f"one kernel stack of {frames} frames, in C", 15e-6 * frames / 20)
    call = unwinder.tables.prepare(registers, copies, from_call=True).run
    for _ in range(rounds):
        native.run(call, UNWINDS)
        unwound.run(
            lambda: unwinder.tables.unwind(registers, copies, from_call=True), UNWINDS // 10
        )
    return [symbols, again, types, tables, listed, native, unwound]


def _baseline(kernel: Kernel) -> Measurement | None:
    """The other tool, on the kernel's image as it lies in the guest's memory."""
    beside = Path(sys.executable).parent / BASELINE
    program = str(beside) if beside.exists() else shutil.which(BASELINE)
    if program is None:
        return None
    location = kernel.location
    with tempfile.NamedTemporaryFile() as dump:
        dump.write(copy_image(kernel.memory, location, range(location.base, location.end)))
        dump.flush()
        command = [program, dump.name]
        begin = time.perf_counter()
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=BASELINE_SECONDS, check=False
        )
        seconds = time.perf_counter() - begin
    own = {(symbol.address, symbol.name) for symbol in kernel.symbols}
    found = set()
    for line in result.stdout.splitlines():
        words = line.split()
        if len(words) == 3 and len(words[0]) == 16:
            found.add((int(words[0], 16), words[2]))
    title = f"{BASELINE} on a dump of it ({len(found & own)} right)"
    return Measurement(title, None, seconds, float("nan"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--suite", help="of Debian, whose cloud kernel is the guest's")
    arguments = parser.parse_args()
    files = fetch_kernel(DEFAULT_PACKAGE, arguments.suite)
    options = GuestOptions(name="kvmgdb-bench", memory=384, append="KVMGDB_CROWD=1")
    with contextlib.closing(ProbedGuest(files, options)) as guest:
        machine = parse_target(str(guest.pid)).open()
        try:
            with stopped(machine):
                results = _measure(machine, arguments.rounds)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
                results += filter(None, [_baseline(find_kernel(machine))])
        finally:
            machine.close()
    print(f"Linux {files.release}")
    print(f"{'':48}{'wall':>12}{'CPU':>12}{'wanted':>12}")
    for result in results:
        print(
            f"{result.title:48}{_in_units(result.wall):>12}{_in_units(result.cpu):>12}"
            f"{_in_units(result.wanted):>12}"
        )
    print(f"{'peak resident memory':48}{f'{peak} MiB':>12}{'':12}{'150 MiB':>12}")


if __name__ == "__main__":
    main()
