"""The commands, as a user runs them, on a guest that runs on."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.linux.commands import answer, kvmgdb
from tests.linux.probed import ProbedGuest
from tests.linux.test_symbols import own_symbols


def test_info(probed_guest: ProbedGuest) -> None:
    facts = answer(probed_guest.pid, "info")
    assert facts["machine"]["vcpus"] == 2
    assert facts["kernel"]["release"] == probed_guest.kernel.release
    assert facts["kernel"]["state"] == "running"
    shown = kvmgdb(probed_guest.pid, "info").stdout
    assert f"build id:         {facts['kernel']['build_id']}\n" in shown
    assert f"base:             {facts['kernel']['base']:#x}\n" in shown


def test_ps(probed_guest: ProbedGuest) -> None:
    threads = answer(probed_guest.pid, "ps", "--threads")["tasks"]
    tasks = {task["comm"]: task for task in threads}
    assert tasks["init"]["pid"] == 1
    assert tasks["compute"]["parent"] == 1
    assert tasks["kthreadd"]["kernel"]
    lines = kvmgdb(probed_guest.pid, "ps", "--tree").stdout.splitlines()
    assert lines[0].split() == ["PID", "PPID", "UID", "S", "CPU", "RUN", "NAME"]
    column = lines[0].index("NAME")
    depths = {
        line[column:].strip(): len(line[column:]) - len(line[column:].lstrip()) for line in lines
    }
    assert depths["init"] == 0
    assert depths["in-pipe"] == 2
    # Kernel workers come and go between two reads of a guest that runs.
    processes = answer(probed_guest.pid, "ps")["tasks"]
    listed = {task["comm"] for task in processes if not task["kernel"]}
    assert listed == {name for name in depths if not name.startswith("[") and name != "NAME"}


def test_dmesg(probed_guest: ProbedGuest) -> None:
    first = probed_guest.text("log").splitlines()[0]
    shown = kvmgdb(probed_guest.pid, "dmesg").stdout.splitlines()
    assert shown[0] == first.partition(">")[2]
    worse = kvmgdb(probed_guest.pid, "dmesg", "--json", "--level", "warn").stdout
    records = [json.loads(line) for line in worse.splitlines()]
    assert records
    assert {record["level"] for record in records} <= {"emerg", "alert", "crit", "err", "warn"}
    assert len(records) < len(shown)


def test_modules(probed_guest: ProbedGuest) -> None:
    found = [module["name"] for module in answer(probed_guest.pid, "modules")["modules"]]
    assert found == [line.split()[0] for line in probed_guest.text("/proc/modules").splitlines()]
    assert [
        line.split()[0] for line in kvmgdb(probed_guest.pid, "modules").stdout.splitlines()[1:]
    ] == (found)


def test_backtrace(probed_guest: ProbedGuest) -> None:
    result = kvmgdb(probed_guest.pid, "backtrace", "--all-tasks", "--json")
    stacks = json.loads(result.stdout)["stacks"]
    assert "the guest was stopped for" in result.stderr
    assert [stack["vcpu"] for stack in stacks[:2]] == [0, 1]
    asleep = {
        (stack["task"]["comm"], frame["symbol"])
        for stack in stacks[2:]
        for frame in stack["frames"]
    }
    assert ("in-pipe", "pipe_read") in asleep
    assert ("in wait", "kernel_wait4") in asleep
    shown = kvmgdb(probed_guest.pid, "backtrace", "--all-tasks").stdout
    assert "pipe_read+0x" in shown
    assert "vCPU 1" in shown


def test_symbols(probed_guest: ProbedGuest) -> None:
    lines = kvmgdb(probed_guest.pid, "symbols").stdout.splitlines()
    own = [f"{address:016x} {kind} {name}" for address, kind, name in own_symbols(probed_guest)]
    assert lines[: len(own)] == own
    assert any(line.endswith("\t[loop]") for line in lines[len(own) :])


def test_the_guest_runs_on(probed_guest: ProbedGuest) -> None:
    for command in ("info", "ps", "dmesg", "modules", "backtrace"):
        kvmgdb(probed_guest.pid, command)
        assert probed_guest.linux.makes_progress(), command


def test_an_unknown_level_is_refused(probed_guest: ProbedGuest) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        kvmgdb(probed_guest.pid, "dmesg", "--level", "loud")
    assert raised.value.returncode == 2
