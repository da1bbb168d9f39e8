"""``kvmgdb profile``: where a guest spends its time, seen from the host."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kvmgdb.cli.guest import attached
from kvmgdb.cli.selection import by_option, roots_of
from kvmgdb.cli.terminal import note
from kvmgdb.errors import KvmgdbError, TargetNotFoundError, UsageError
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.processes import vm_processes
from kvmgdb.machine.target import parse_target
from kvmgdb.profiler import formats
from kvmgdb.profiler.off_cpu import record_sleeping
from kvmgdb.profiler.output import check_writable
from kvmgdb.profiler.recorder import NoSamplesError, Recorder, check_samples
from kvmgdb.profiler.recording import Recording
from kvmgdb.profiler.session import MAX_RATE, Session, Wanted
from kvmgdb.profiler.summary import Summary
from kvmgdb.profiler.view import Root, View

_MIN_RATE = 0.01
# Of the rate that was asked for: below that, it is said what was reached.
_ENOUGH = 0.9
_DEFAULT_OUTPUT = "profile.kvmprof"

T = TypeVar("T")


@click.command(
    short_help="Record what a guest executes, with call stacks.",
    epilog="Example: kvmgdb profile vm1 --duration 10 -o vm1.html",
)
@click.argument("target", required=False)
@click.option("--all", "every", is_flag=True, help="Every virtual machine on this host.")
@click.option("--rate", default=99.0, show_default=True, help="Samples a second, of each vCPU.")
@click.option("--duration", type=float, help="Seconds; without it, until Ctrl-C.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=_DEFAULT_OUTPUT,
    show_default=True,
    help="The file to write; its name says in which format.",
)
@click.option("--format", "form", type=click.Choice(formats.NAMES), help="The file's format.")
@click.option("--kernel-only", is_flag=True, help="No functions of user mode.")
@click.option("--user", "user_only", is_flag=True, help="No functions of the kernel.")
@click.option("--idle", is_flag=True, help="Show the time that vCPUs were idle, too.")
@click.option("--task", metavar="NAME", help="Only this task: its name, PID or TID.")
@click.option("--vcpu", type=int, metavar="N", help="Only this vCPU, counted from 0.")
@by_option
@click.option("--off-cpu", is_flag=True, help="Not samples: where sleeping tasks wait, once.")
@click.option(
    "--symbols",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An ELF file that names the code of a guest that is not Linux.",
)
def profile(
    target: str | None,
    every: bool,
    rate: float,
    duration: float | None,
    output: Path,
    form: str | None,
    kernel_only: bool,
    user_only: bool,
    idle: bool,
    task: str | None,
    vcpu: int | None,
    by: tuple[str, ...],
    off_cpu: bool,
    symbols: Path | None,
) -> None:
    """Record what the vCPUs of a guest execute, with their call stacks.

    For each sample a vCPU is stopped for some microseconds, and nothing in the
    guest knows of it. The recording can be looked at with `kvmgdb report`, or as a
    flame graph, speedscope, pprof, Firefox Profiler or perf file.
    """
    if not _MIN_RATE <= rate <= MAX_RATE:
        raise UsageError(
            f"{rate:g} samples a second cannot be taken",
            f"give a rate from {_MIN_RATE:g} to {MAX_RATE:g}",
        )
    if duration is not None and not 0 < duration < 1e7:
        raise UsageError(f"a recording cannot take {duration:g} seconds")
    if kernel_only and user_only:
        raise UsageError("--kernel-only and --user leave nothing to record")
    if every and target is not None:
        raise UsageError("--all records every virtual machine: it takes no TARGET")
    chosen = formats.format_of(output, form)
    check_writable(output)
    roots = dict.fromkeys((*([Root.VM] if every else []), *roots_of(by)))
    view = View(tuple(roots), idle)
    wanted = Wanted(not user_only, not kernel_only, task, vcpu, symbols)
    with ExitStack() as stack:
        machines = _open_all(stack) if every else [stack.enter_context(attached(target))]
        named = _named(machines)
        recording = Recording(", ".join(named), 0.0 if off_cpu else rate, time.time_ns())
        if off_cpu:
            _snapshot(named, recording, task)
        else:
            _sample(named, recording, wanted, duration, idle)
    formats.write(recording, output, chosen, view)
    note(f"{len(recording)} samples written to {output}")


def _open_all(stack: ExitStack) -> list[Machine]:
    """Every machine of the host that can be attached to."""
    machines = []
    for process in vm_processes():
        try:
            machine = parse_target(str(process.pid)).open()
        except KvmgdbError as error:
            note(f"without PID {process.pid}: {error}")
            continue
        stack.callback(machine.close)
        machines.append(machine)
    if not machines:
        raise TargetNotFoundError("no virtual machine runs on this host that could be recorded")
    return machines


def _named(machines: list[Machine]) -> dict[str, Machine]:
    """The machines by names that tell them apart."""
    infos = [machine.info() for machine in machines]
    often = Counter(info.label for info in infos)
    return {
        info.label if often[info.label] == 1 else f"{info.label} (PID {info.pid})": machine
        for info, machine in zip(infos, machines, strict=True)
    }


def _each(named: dict[str, T], recording: Recording, begin: Callable[[str, T], None]) -> None:
    """Begins with each. A machine that cannot be recorded does not keep us from the
    others; where there is no other, its error is raised."""
    failed = 0
    for name, item in named.items():
        try:
            begin(name, item)
        except KvmgdbError as error:
            failed += 1
            if failed == len(named):
                raise
            recording.remark(f"without {name}: {error}")


def _snapshot(named: dict[str, Machine], recording: Recording, task: str | None) -> None:
    def begin(name: str, machine: Machine) -> None:
        record_sleeping(machine, recording, name, task)

    _each(named, recording, begin)
    for remark in recording.remarks:
        note(remark)
    if not len(recording):
        raise NoSamplesError("no task that was asked for sleeps in the guest")


def _sample(
    named: dict[str, Machine],
    recording: Recording,
    wanted: Wanted,
    duration: float | None,
    idle: bool,
) -> None:
    if wanted.vcpu is not None:
        most = max(len(machine.vcpus) for machine in named.values())
        if not 0 <= wanted.vcpu < most:
            raise UsageError(f"there is no vCPU {wanted.vcpu}: there are {most}, from 0")
    sessions: list[Session] = []
    recorder = Recorder(recording, sessions)

    prepared: dict[str, Session] = {}

    def prepare(name: str, machine: Machine) -> None:
        prepared[name] = Session(machine, recording, name, recording.rate, wanted)

    _each(named, recording, prepare)
    recording.start_ns, begin_ns = time.time_ns(), time.monotonic_ns()

    def begin(_name: str, session: Session) -> None:
        session.begin(begin_ns)
        sessions.append(session)

    try:
        _each(prepared, recording, begin)
        with _until_signal(recorder), _progress(recorder, duration) as look:
            recorder.run(duration, look)
    finally:
        counters = recorder.close()
    reached = counters.rounds / len(sessions) / recorder.seconds
    if reached < _ENOUGH * recording.rate:
        recording.remark(f"{reached:.1f} Hz were reached, of {recording.rate:g} asked for")
    for session in sessions:
        for program in session.incomplete_programs:
            recording.remark(f"the symbols of {program} are not all in the guest's memory")
        if session.skipped:
            recording.remark(
                f"{session.skipped} samples of other tasks and vCPUs were left out, and are "
                "in none of these figures"
            )
    for session, error in recorder.ended.items():
        recording.remark(f"the recording of {session.name} ended early: {error}")
    check_samples(recorder, idle)
    _summarise(recorder)


@contextmanager
def _until_signal(recorder: Recorder) -> Iterator[None]:
    """Ctrl-C ends the recording, which is then written. A second one ends us."""

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, old[signal.Signals(number)])
        recorder.stop()

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class _Look:
    """What the progress bar shows; without a terminal, nothing."""

    def __init__(self, recorder: Recorder, progress: Progress, duration: float | None) -> None:
        self._recorder = recorder
        self._progress = progress
        self._task = progress.add_task("", total=duration, samples=0, rate=0.0, lost="")

    def __call__(self, seconds: float) -> None:
        counted = [session.stream.counters() for session in self._recorder.sessions]
        lost = sum(each.missed + each.dropped + each.failed for each in counted)
        rounds = sum(each.rounds for each in counted) / max(len(counted), 1)
        self._progress.update(
            self._task,
            completed=seconds,
            samples=sum(each.samples for each in counted),
            rate=rounds / seconds if seconds else 0.0,
            lost=f", {lost} lost" if lost else "",
        )


@contextmanager
def _progress(recorder: Recorder, duration: float | None) -> Iterator[_Look]:
    console = Console(stderr=True)
    progress = Progress(
        SpinnerColumn(),
        TimeElapsedColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[samples]} samples, {task.fields[rate]:.0f} Hz{task.fields[lost]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        yield _Look(recorder, progress, duration)


def _summarise(recorder: Recorder) -> None:
    for line in Summary.of(recorder.recording).lines():
        note(line)
