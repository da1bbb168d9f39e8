"""``kvmgdb top``: what it lists, and how it behaves in a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvmgdb.cli.top_rows import Choice, Listing, Page, page
from kvmgdb.demo.guest import LinuxGuest
from kvmgdb.errors import TargetGoneError
from kvmgdb.profiler.live import Live, Phase
from kvmgdb.profiler.recording import Recording, State, Task
from kvmgdb.profiler.view import View
from tests.guests.linux.fixtures import StartGuest
from tests.profiler.recordings import PER_VCPU, TOTAL, known
from tests.support.polling import wait_for
from tests.support.qemu import qmp
from tests.support.require import requires
from tests.support.tmux import Terminal

KVMGDB = str(Path(sys.executable).with_name("kvmgdb"))


class KnownSource:
    """Gives the samples of the known recording once, then waits."""

    kernel: object | None = None
    opened = 0
    closed = 0

    def __init__(self, recording: Recording) -> None:
        type(self).opened += 1
        self._recording = recording
        self._given = False
        self._never = threading.Event()

    def wait(self, seconds: float) -> None:
        self._never.wait(seconds)

    def drain(self, seconds: float) -> bool:
        if not self._given:
            self._given = True
            for sample in known().samples():
                self._recording.add(*sample[:5], State(sample.state), sample.held_ns)
        return False

    def close(self) -> None:
        type(self).closed += 1


class EndingSource(KnownSource):
    def wait(self, seconds: float) -> None:
        if self._given:
            raise TargetGoneError("the machine has ended")


@pytest.fixture
def live() -> Iterator[Live]:
    recording = known()
    recording.take_samples()
    KnownSource.opened = KnownSource.closed = 0
    with Live(recording, lambda: KnownSource(recording), 600.0) as found:
        take_all(found)
        yield found
    assert KnownSource.opened == KnownSource.closed


def take_all(live: Live) -> None:
    def arrived() -> bool:
        live.update()
        return live.tree(View()).root.total >= TOTAL

    wait_for("the samples", arrived)


def lines(found: Page) -> list[str]:
    return [" ".join(row.text.split()) for row in found.rows]


# ---- what is listed ---------------------------------------------------------


def test_functions(live: Live) -> None:
    found = page(live, Choice(), 80)
    assert lines(found)[:2] == [
        "30.0% 50.0% compute;all (/bin/work)",
        "20.0% 20.0% memcpy (/lib/libc.so.6)",
    ]
    assert "10.0% 10.0% ext4_readpage [ext4]" in lines(found)
    total = page(live, Choice(by_total=True), 80)
    assert lines(total)[0] == "0.0% 95.0% _start (/bin/work)"
    assert live.busy() == pytest.approx(TOTAL / (TOTAL + 500))


def test_narrow_screens_keep_what_matters(live: Live) -> None:
    found = page(live, Choice(), 20)
    assert (found.heading, found.rows[0].text) == ("  SELF FUNCTION", " 30.0% compute;all")
    total = page(live, Choice(by_total=True), 20)
    assert (total.heading, total.rows[0].text) == (" TOTAL FUNCTION", " 95.0% _start")


def test_tasks_and_vcpus(live: Live) -> None:
    assert lines(page(live, Choice(Listing.TASKS), 80)) == [
        "50.0% work (100)",
        "50.0% work er (201)",
    ]
    idle = Choice(Listing.TASKS, View(idle=True))
    assert lines(page(live, idle, 80)) == [
        "40.0% work (100)",
        "40.0% work er (201)",
        "20.0% swapper/0 (0)",
    ]
    vcpus = lines(page(live, Choice(Listing.VCPUS), 80))
    assert vcpus == ["100.0% vCPU 0", "66.7% vCPU 1"]


def test_what_is_opened_and_closed(live: Live) -> None:
    choice = Choice()
    memcpy = next(row.key for row in page(live, choice, 80).rows if "memcpy" in row.text)
    callers = choice.opened(memcpy)
    assert callers.title() == "callers of memcpy"
    assert lines(page(live, callers, 80)) == [
        "100.0% compute;all (/bin/work)",
        "100.0% main",
        "100.0% _start",
    ]
    assert callers.closed() == choice

    task = Choice(Listing.TASKS).opened(Task(200, 201, "work er"))
    assert task.title() == "functions of task 201 by self"
    assert live.tree(task.view).root.total == PER_VCPU
    swapper = Choice(Listing.TASKS).opened(Task(0, 0, "swapper/0"))
    assert live.tree(replace(swapper.view, idle=True)).root.total == 500
    vcpu = Choice(Listing.VCPUS).opened(1)
    assert vcpu.title() == "functions on vCPU 1 by self"
    assert live.tree(vcpu.view).root.total == PER_VCPU
    assert vcpu.closed().view == View()
    assert choice.opened(None) == choice


def test_searches(live: Live) -> None:
    found = Choice(search="EXT4")
    assert lines(page(live, found, 80)) == ["10.0% 10.0% ext4_readpage [ext4]"]
    assert found.closed().search == ""
    assert lines(page(live, Choice(Listing.TASKS, search="er"), 80)) == ["50.0% work er (201)"]
    assert page(live, Choice(search="nothing like it"), 80).rows == ()


# ---- samples that go on -----------------------------------------------------


def test_a_pause_lets_the_machine_be(live: Live) -> None:
    live.pause(True)
    wait_for("the pause", lambda: live.phase is Phase.PAUSED)
    assert (KnownSource.opened, KnownSource.closed) == (1, 1)
    live.update()
    # What was seen is still there to be looked at.
    assert live.tree(View()).root.total == TOTAL
    live.pause(False)
    wait_for("new samples", lambda: KnownSource.opened == 2)
    take_all(live)
    assert live.tree(View()).root.total == TOTAL


def test_old_samples_are_let_go() -> None:
    recording = known()
    recording.take_samples()
    with Live(recording, lambda: KnownSource(recording), 2.0) as live:
        take_all(live)

        def gone() -> bool:
            live.update()
            return live.tree(View()).root.total == 0

        wait_for("that old samples go", gone)
        assert live.busy() is None


def test_the_end_of_a_machine_is_told() -> None:
    recording = known()
    recording.take_samples()
    with Live(recording, lambda: EndingSource(recording), 600.0) as live:
        wait_for("the end", lambda: live.over)
        live.update()
        assert str(live.error) == "the machine has ended"
        assert live.phase is Phase.ENDED
        assert live.tree(View()).root.total == TOTAL


def test_a_fault_of_ours_is_not_swallowed() -> None:
    def broken() -> KnownSource:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Live(known(), broken, 1.0) as live:
        wait_for("the end", lambda: live.over)


# ---- a real guest in a real terminal ----------------------------------------


def top(
    guest: LinuxGuest, directory: Path, columns: int = 80, rows: int = 24, window: int = 600
) -> Terminal:
    command = [KVMGDB, "top", str(guest.pid), "--rate", "50", "--window", str(window)]
    return Terminal(command, directory, columns, rows)


def kvmgdb_processes(guest: LinuxGuest) -> list[int]:
    wanted = f"top\0{guest.pid}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and wanted in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@requires("tmux")
def test_a_guest_in_a_terminal(linux_guest: LinuxGuest, tmp_path: Path) -> None:
    with top(linux_guest, tmp_path) as terminal:
        screen = terminal.see("sampling", "functions by self", "%")
        assert screen.splitlines()[2].split() == ["SELF", "TOTAL", "FUNCTION"]
        terminal.keys("s")
        # Of all functions it is among those below which most time is spent.
        terminal.see("functions by total", "do_syscall_64")
        terminal.keys("Tab")
        terminal.see("tasks", "syscalls (")
        terminal.keys("Tab")
        terminal.see("vCPUs", "vCPU 0", "vCPU 1")
        terminal.keys("Down", "Enter")
        terminal.see("functions on vCPU 1")
        terminal.keys("Escape")
        terminal.see("functions by total")

        terminal.keys("/")
        terminal.type("do_syscall")
        screen = terminal.see("/do_syscall", "do_syscall_64")
        assert "entry_SYSCALL" not in screen
        terminal.keys("Enter", "Enter")
        terminal.see("callers of do_syscall_64", "entry_SYSCALL_64")
        terminal.keys("Escape")
        terminal.see("functions by total")

        terminal.keys("Space")
        terminal.see("paused")
        assert linux_guest.makes_progress()
        terminal.resize(20, 8)
        screen = terminal.see(" TOTAL FUNCTION")
        assert len(screen.splitlines()) == 8
        terminal.resize(100, 30)
        terminal.see("   SELF   TOTAL  FUNCTION")
        terminal.keys("Space")
        terminal.see("sampling")
        terminal.keys("q")
        terminal.see("exit 0")
    assert linux_guest.makes_progress()


@requires("tmux")
def test_a_narrow_terminal_from_the_start(linux_guest: LinuxGuest, tmp_path: Path) -> None:
    with top(linux_guest, tmp_path, 20, 6) as terminal:
        terminal.see("  SELF FUNCTION", "%")
        terminal.keys("C-c")
        terminal.see("exit 0")


@requires("tmux")
def test_a_terminal_that_goes_away(linux_guest: LinuxGuest, tmp_path: Path) -> None:
    terminal = top(linux_guest, tmp_path)
    try:
        terminal.see("sampling")
        assert kvmgdb_processes(linux_guest)
    finally:
        terminal.hang_up()
    wait_for("that top ends with its terminal", lambda: not kvmgdb_processes(linux_guest), 60)
    assert linux_guest.makes_progress()


@requires("tmux")
def test_a_machine_that_ends(start_linux_guest: StartGuest, tmp_path: Path) -> None:
    guest = start_linux_guest(name="ends")
    with top(guest, tmp_path) as terminal:
        terminal.see("sampling")
        os.kill(guest.pid, 9)
        terminal.see("ended: ")
        terminal.keys("q")
        terminal.see("exit 1")


@requires("tmux")
def test_a_guest_that_starts_again(start_linux_guest: StartGuest, tmp_path: Path) -> None:
    monitor = tmp_path / "qmp2"
    second = ("-action", "reboot=reset", "-qmp", f"unix:{monitor},server=on,wait=off")
    guest = start_linux_guest(name="again", arguments=second)
    (tmp_path / "terminal").mkdir()
    with top(guest, tmp_path / "terminal", window=5) as terminal:
        terminal.see("sampling")
        terminal.keys("s")
        terminal.see("functions by total", "do_syscall_64")
        qmp(monitor, "system_reset")
        guest.wait_ready()
        # It has another KASLR offset now: were that not noticed, all its addresses
        # would have no names.
        terminal.keys("/")
        terminal.type("0xffffffff")
        terminal.see("sampling", "nothing has such a name")
        terminal.keys("Escape")
        terminal.see("do_syscall_64")
        terminal.keys("q")
        terminal.see("exit 0")


def test_without_a_terminal(linux_guest: LinuxGuest) -> None:
    command = [KVMGDB, "top", str(linux_guest.pid), "--rate", "50", "--window", "2"]
    result = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert {entry["vcpu"] for entry in facts["vcpus"]} == {0, 1}
    assert 0 < facts["busy"] <= 1
    assert facts["samples"] == sum(function["self"] for function in facts["functions"])
    assert facts["samples"] == sum(task["samples"] for task in facts["tasks"])

    plain = subprocess.run(
        command, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL
    )
    assert plain.returncode == 0, plain.stderr
    assert [line.split()[-1] for line in plain.stdout.splitlines() if "%" not in line and line] == [
        "FUNCTION",
        "TASK",
        "VCPU",
    ]
    assert "\x1b" not in plain.stdout


@pytest.mark.parametrize("rate", ["0", "nan", "1000000"])
def test_rates_that_cannot_be(rate: str) -> None:
    result = subprocess.run(
        [KVMGDB, "top", "1", "--rate", rate], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2
    assert "samples a second cannot be taken" in result.stderr
