"""``kvmgdb top``: where a guest spends its time, now."""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click

from kvmgdb.cli.guest import attached, print_json
from kvmgdb.cli.top_rows import Choice, Listing, page
from kvmgdb.errors import UsageError
from kvmgdb.machine.interface import Machine
from kvmgdb.profiler.live import Live, Phase
from kvmgdb.profiler.recording import Recording, State, Task
from kvmgdb.profiler.session import MAX_RATE, Session, Wanted
from kvmgdb.profiler.view import View

_MIN_RATE = 1.0
_PIPE_WIDTH = 200
_PIPE_ROWS = 30
_GLANCE = 0.1


@click.command(
    short_help="Show where a guest spends its time, live.", epilog="Example: kvmgdb top vm1"
)
@click.argument("target", required=False)
@click.option("--rate", default=99.0, show_default=True, help="Samples a second, of each vCPU.")
@click.option(
    "--window",
    type=click.FloatRange(1, 600),
    default=10.0,
    show_default=True,
    help="Seconds that are looked back at.",
)
@click.option(
    "--symbols",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An ELF file that names the code of a guest that is not Linux.",
)
@click.option("--idle", is_flag=True, help="Count halted vCPUs too.")
@click.option("--json", "as_json", is_flag=True, help="No screen: one JSON object, for programs.")
def top(
    target: str | None, rate: float, window: float, symbols: Path | None, idle: bool, as_json: bool
) -> None:
    """Show the functions in which a guest spends its time, its tasks and its vCPUs,
    while it runs.

    Keys: q leaves, space pauses, Tab goes on to tasks and to vCPUs, Enter opens what
    is selected (a function's callers, a task's or a vCPU's functions), Escape goes
    back, s sorts by self or total time, / searches, i counts idle time too.

    Without a terminal, what one window of seconds showed is printed.
    """
    if not _MIN_RATE <= rate <= MAX_RATE:
        raise UsageError(
            f"{rate:g} samples a second cannot be taken",
            f"give a rate from {_MIN_RATE:g} to {MAX_RATE:g}",
        )
    interactive = not as_json and sys.stdin.isatty() and sys.stdout.isatty()
    view = View(idle=idle)
    with attached(target) as machine:
        recording = Recording(machine.info().label, rate, time.time_ns())
        with Live(recording, lambda: _session(machine, recording, symbols), window) as live:
            if interactive:
                # Only here: what draws screens takes a while to load.
                from kvmgdb.cli.top_screen import TopScreen

                TopScreen(live, view).run()
            else:
                _wait(live)
            live.update()
        if live.error is not None:
            raise live.error
    if interactive:
        return
    if as_json:
        _print_json(live, view)
    else:
        _print(live, view)


def _session(machine: Machine, recording: Recording, symbols: Path | None) -> Session:
    wanted = Wanted(symbols=symbols)
    session = Session(machine, recording, recording.target, recording.rate, wanted)
    session.begin()
    return session


def _wait(live: Live) -> None:
    """Until the window is full, the machine has ended or the user wants no more."""
    end = None
    with suppress(KeyboardInterrupt):
        while not live.over and (end is None or time.monotonic() < end):
            if end is None and live.phase is Phase.SAMPLING:
                end = time.monotonic() + live.seconds
            time.sleep(_GLANCE)


def _print(live: Live, view: View) -> None:
    for choice in (
        Choice(view=view),
        Choice(Listing.TASKS, view=view),
        Choice(Listing.VCPUS, view=view),
    ):
        shown = page(live, choice, _PIPE_WIDTH)
        click.echo(shown.heading)
        for row in shown.rows[:_PIPE_ROWS]:
            click.echo(row.text)
        if not shown.rows:
            click.echo("nothing ran")
        click.echo()


def _print_json(live: Live, view: View) -> None:
    tree = live.tree(view)
    tasks: Counter[Task] = Counter()
    vcpus: dict[int, Counter[str]] = {}
    for group, count in live.groups(replace(view, idle=True)).items():
        state = State(group.state)
        if view.idle or state is not State.HALTED:
            tasks[live.recording.tasks[group.task]] += count
        vcpus.setdefault(group.vcpu, Counter())[state.name.lower()] += count
    functions = sorted(tree.shares().items(), key=lambda item: (-item[1].own, item[0]))
    print_json(
        {
            "target": live.recording.target,
            "rate": live.recording.rate,
            "seconds": live.seconds,
            "busy": live.busy(),
            "samples": tree.root.total,
            "functions": [
                {
                    "function": function.label,
                    "module": function.module,
                    "kind": function.kind.name.lower(),
                    "self": share.own,
                    "total": share.total,
                }
                for function, share in functions
            ],
            "tasks": [
                {"pid": task.pid, "tid": task.tid, "name": task.name, "samples": count}
                for task, count in tasks.most_common()
            ],
            "vcpus": [{"vcpu": vcpu, **counts} for vcpu, counts in sorted(vcpus.items())],
        }
    )
