"""GDB in batch mode on the tour: shows what it prints, and checks it."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from kvmgdb.demo.process import end, private_directory, start
from kvmgdb.demo.tour import Stop
from kvmgdb.errors import HostError, MachineError

TOUR_SECONDS = 120.0

# What GDB echoes for us in between; no command prints a line like this.
_MARK = "@kvmgdb@"


def run_batch(gdb: str, address: str, stops: Sequence[Stop], console: Console) -> None:
    """Runs GDB over ``stops``. Raises MachineError where any did not do what it says."""
    with private_directory("tour") as directory:
        script = Path(directory) / "tour.gdb"
        script.write_text(_script(address, stops))
        read_end, write_end = os.pipe()
        try:
            process = start([gdb, "-nx", "-q", "-batch", "-x", str(script)], output=write_end)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        try:
            failures = _show(_lines(read_end, time.monotonic() + TOUR_SECONDS), stops, console)
            status = process.wait(5)
        except (TimeoutError, subprocess.TimeoutExpired):
            raise MachineError(f"{gdb} did not end within {TOUR_SECONDS:.0f} s") from None
        finally:
            os.close(read_end)
            end(process)
    if failures:
        raise MachineError(f"the demo did not do what it says: {'; '.join(failures)}")
    if status != 0:
        raise HostError(f"{gdb} ended with status {status}")


def _script(address: str, stops: Sequence[Stop]) -> str:
    lines = [
        "set pagination off",
        "set confirm off",
        "set width 0",
        f"echo (gdb) target remote {address}\\n",
        f"target remote {address}",
    ]
    for index, stop in enumerate(stops):
        lines.append(f"echo {_MARK}{index}\\n")
        for command in stop.commands:
            lines += [f"echo (gdb) {command}\\n", command]
    return "\n".join([*lines, f"echo {_MARK}{len(stops)}\\n", ""])


def _lines(descriptor: int, deadline: float) -> Iterator[str]:
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            data = os.read(descriptor, 65536)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
    if pending:
        yield pending.decode(errors="replace")


def _show(lines: Iterator[str], stops: Sequence[Stop], console: Console) -> list[str]:
    """Prints the tour as it comes; returns what went wrong."""
    failures: list[str] = []
    reached = -1
    answer: list[str] = []
    for line in lines:
        if not line.startswith(_MARK):
            answer.append(line)
            _print_line(line, console)
            continue
        if reached >= 0:
            failures += _judge(stops[reached], "\n".join(answer), console)
        reached, answer = int(line.removeprefix(_MARK)), []
        if reached < len(stops):
            console.print()
            console.print(Text(f"-- {stops[reached].title}", style="bold"))
    if reached < len(stops):
        where = stops[reached].title if reached >= 0 else "connecting"
        failures.append(f"GDB gave up at {where!r}: {answer[-1] if answer else 'it said nothing'}")
    return failures


def _judge(stop: Stop, answer: str, console: Console) -> list[str]:
    wrong = stop.check(answer)
    if wrong:
        console.print(Text(f"   failed: {wrong}", style="bold red"))
        return [f"{stop.title!r}: {wrong}"]
    console.print(Text(f"   ok: {stop.proves}", style="green"))
    return []


def _print_line(line: str, console: Console) -> None:
    style = "cyan" if line.startswith("(gdb) ") else ""
    console.print(Text(line, style=style), soft_wrap=True)
