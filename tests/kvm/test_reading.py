"""What the commands say about stock Linux under KVM is what it said itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from kvmgdb.demo.kernel import Kernel
from tests.kvm.adopted import LinuxUnderKvm, linux_under_kvm
from tests.linux.commands import answer, kvmgdb, log_of
from tests.linux.test_variants import OUTERMOST
from tests.support.require import requires

pytestmark = [requires("kvm", "qemu", "cc"), pytest.mark.slow]

_COMPUTING = {"init", "compute-1", "compute-2", "compute-3"}


@pytest.fixture(scope="module")
def linux(linux_kernel: Kernel) -> Iterator[LinuxUnderKvm]:
    with linux_under_kvm(linux_kernel) as guest:
        yield guest
        guest.assert_progress()


def test_info(linux: LinuxUnderKvm, linux_kernel: Kernel) -> None:
    facts = answer(linux.pid, "info")
    assert facts["machine"]["accelerator"] == "kvm"
    assert facts["machine"]["vcpus"] == 2
    kernel = facts["kernel"]
    assert kernel["release"] == linux_kernel.release
    assert kernel["state"] == "running"
    assert kernel["disagreements"] == []
    assert f"] {kernel['banner']}" in linux.facts.console
    assert f"] Command line: {kernel['command_line']}" in linux.facts.console


def test_ps(linux: LinuxUnderKvm) -> None:
    tasks = answer(linux.pid, "ps")["tasks"]
    programs = [task for task in tasks if not task["kernel"]]
    assert {task["comm"] for task in programs} == _COMPUTING
    assert {task["parent"] for task in programs} == {0, 1}
    assert {task["state"] for task in programs} == {"R"}
    assert [task["comm"] for task in tasks if task["pid"] == 2] == ["kthreadd"]


def test_dmesg(linux: LinuxUnderKvm) -> None:
    """All that came out on the console, with its time."""
    printed = re.findall(r"^\[ *(\d+\.\d{6})\] (.*?)\r?$", linux.facts.console, re.MULTILINE)
    assert len(printed) > 100
    logged = {
        (f"{record['time'] // 1000 / 1e6:.6f}", line)
        for record in log_of(linux.pid)
        for line in record["text"].split("\n")
    }
    assert set(printed) <= logged


def test_modules(linux: LinuxUnderKvm) -> None:
    assert answer(linux.pid, "modules") == {"modules": [], "damage": None}


def test_symbols(linux: LinuxUnderKvm) -> None:
    found = {}
    for line in kvmgdb(linux.pid, "symbols").stdout.splitlines():
        address, _, name = line.split(maxsplit=2)
        found[name] = int(address, 16)
    assert linux.facts.symbols
    assert linux.facts.symbols.items() <= found.items()


def test_backtrace(linux: LinuxUnderKvm) -> None:
    """Each CPU computes, or handles an interrupt of what computes."""
    for _ in range(10):
        stacks = answer(linux.pid, "backtrace")["stacks"]
        assert [stack["vcpu"] for stack in stacks] == [0, 1]
        for stack in stacks:
            assert stack["broken"] is None, stack
            last = stack["frames"][-1]
            assert last["ip"] < 1 << 63 or last["symbol"] in OUTERMOST, stack
            names = [str(frame["symbol"]) for frame in stack["frames"]]
            switching = any(name.startswith("__switch_to") for name in names)
            if last["ip"] < 1 << 63 and not switching:
                assert stack["task"]["comm"] in _COMPUTING, stack


def test_stacks_of_sleeping_tasks(linux: LinuxUnderKvm) -> None:
    stacks = answer(linux.pid, "backtrace", "--all-tasks")["stacks"][2:]
    assert all(stack["broken"] is None for stack in stacks)
    innermost = {stack["task"]["comm"]: stack["frames"][0]["symbol"] for stack in stacks}
    assert innermost["kthreadd"] == "__schedule"
    symbols = {
        stack["task"]["comm"]: [frame["symbol"] for frame in stack["frames"]] for stack in stacks
    }
    assert "kthreadd" in symbols["kthreadd"]
