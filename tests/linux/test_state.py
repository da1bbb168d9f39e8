"""What the kernel does, compared with what the guest said of itself."""

from __future__ import annotations

import re

import pytest

from kvmgdb.errors import NotFoundError
from kvmgdb.linux.attach import stopped
from kvmgdb.linux.identity import identify
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.log import read_log
from kvmgdb.linux.modules import list_modules
from kvmgdb.linux.stacks import Unwinder
from kvmgdb.linux.tasks import cpu_of_vcpu, current_task, list_tasks, read_task
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.registers import Group
from tests.linux.probed import ProbedGuest

GENERATED = ("[__builtin__ftrace]", "[bpf]", "[__builtin__kprobes]")


def test_identity(probed_guest: ProbedGuest, kernel: Kernel) -> None:
    identity = identify(kernel)
    assert identity.banner == probed_guest.text("/proc/version").strip()
    assert identity.command_line == probed_guest.text("/proc/cmdline").strip()
    assert identity.release == probed_guest.kernel.release
    assert identity.state == "running"
    assert identity.vmcoreinfo["OSRELEASE"] == identity.release
    assert identity.vmcoreinfo["BUILD-ID"] == identity.build_id
    # Zero is one of the places that KASLR chooses from.
    assert int(identity.vmcoreinfo["KERNELOFFSET"], 16) == identity.kaslr_offset
    assert identity.disagreements == ()


def check_modules(guest: ProbedGuest, kernel: Kernel) -> None:
    """The list, line by line, and the symbols of each."""
    modules = list_modules(kernel)
    assert modules.damage is None
    lines = [
        f"{module.name} {module.size} {module.references} "
        f"{''.join(f'{user},' for user in module.users) or '-'} {module.state} {module.base:#x}"
        for module in modules
    ]
    assert lines == [line.strip() for line in guest.text("/proc/modules").splitlines()]
    assert len(lines) >= 2
    expected = set()
    for line in guest.text("/proc/kallsyms").splitlines():
        words = line.split()
        if len(words) == 4 and words[3] not in GENERATED:
            expected.add((int(words[0], 16), words[1], words[2], words[3]))
    found = {
        (symbol.address, symbol.type, symbol.name, f"[{module.name}]")
        for module in modules
        for symbol in module.symbols
    }
    assert found == expected
    assert len(found) > 50


def test_modules_are_the_guests_own(probed_guest: ProbedGuest, kernel: Kernel) -> None:
    check_modules(probed_guest, kernel)


def test_module_types(kernel: Kernel) -> None:
    loop = next(module for module in list_modules(kernel) if module.name == "loop")
    device = loop.types.named("struct loop_device")
    assert device.id not in kernel.types.table.ids
    member = loop.types.find_member(device.id, "lo_disk")
    assert member is not None
    target = loop.types.table.type(loop.types.table.strip(member.type).target)
    assert target.name == "gendisk"
    assert target.id in kernel.types.table.ids
    with pytest.raises(NotFoundError):
        kernel.types.named("struct loop_device")


def _parse_stat(text: str) -> tuple[int, str, str, int]:
    """PID, name, state and parent of /proc/PID/stat (proc(5))."""
    match = re.fullmatch(r"(\d+) \((.*)\) (\S) (\d+) .*\n", text, re.DOTALL)
    assert match
    return int(match[1]), match[2], match[3], int(match[4])


def test_tasks_are_the_guests_own(
    probed_guest: ProbedGuest, machine: Machine, kernel: Kernel
) -> None:
    with stopped(machine):
        tasks = list_tasks(kernel)
    assert tasks.damage is None
    by_pid = {task.tid: task for task in tasks}
    compared = 0
    for pid, files in probed_guest.processes().items():
        if pid not in by_pid:
            continue  # a kernel worker that has ended since
        task = by_pid[pid]
        number, name, state, parent = _parse_stat(files.stat)
        assert (task.pid, task.parent) == (number, parent)
        if task.kernel:
            # A worker's name goes on with what it works on; it may come and go.
            assert name.startswith(task.comm.partition("-")[0][:15])
            continue
        if pid != 1:
            assert (task.comm, task.state) == (name, state)
        compared += 1
    assert compared >= 6
    assert {"compute", "syscalls", "faults", "pipes"} <= {task.comm for task in tasks}
    assert {task.cpu for task in tasks} == {0, 1}


def test_stacks_of_sleeping_tasks_are_the_guests_own(
    probed_guest: ProbedGuest, machine: Machine, kernel: Kernel
) -> None:
    unwinder = Unwinder(kernel)
    assert unwinder.problems == []
    # What /proc/PID/stack leaves out: in_sched_functions().
    scheduler = range(kernel.symbol("__sched_text_start"), kernel.symbol("__sched_text_end"))
    said = probed_guest.processes()
    names = set()
    compared = 0
    with stopped(machine):
        sleeping = [
            (task, unwinder.of_sleeping(task.object))
            for task in list_tasks(kernel)
            if not task.running and task.state != "R" and task.tid in said and task.tid != 1
        ]
    for task, trace in sleeping:
        assert trace.broken is None, (task.comm, trace)
        found = [
            str(frame)
            for frame in trace.frames
            if frame.symbol is not None and frame.frame.ip not in scheduler
        ]
        expected = [line.removeprefix("[<0>] ") for line in said[task.tid].stack]
        if task.kernel and found != expected:
            continue  # what a kernel thread waits for may have changed
        assert found == expected, task.comm
        names.add(task.comm)
        compared += 1
    assert {"in nanosleep", "in (pause)", "in-pipe", "in wait"} <= names
    assert compared > 30


def test_current_tasks(machine: Machine, kernel: Kernel) -> None:
    groups = frozenset({Group.GENERAL, Group.SEGMENT})
    seen = set()
    for _ in range(10):
        with stopped(machine):
            for vcpu in machine.vcpus:
                registers = vcpu.read_registers(groups)
                cpu = cpu_of_vcpu(kernel, registers.get("gs_base"), registers.get("k_gs_base"))
                if cpu is None:
                    continue
                task = read_task(current_task(kernel, cpu))
                assert cpu == vcpu.index
                assert (task.cpu, task.running) == (cpu, True)
                seen.add(task.comm)
    assert seen & {"compute", "syscalls", "faults", "pipes", "swapper/0", "swapper/1", "init"}


def test_log_is_the_guests_own(probed_guest: ProbedGuest, kernel: Kernel) -> None:
    check_log(probed_guest, kernel)


def check_log(guest: ProbedGuest, kernel: Kernel) -> None:
    lines = []
    for record in read_log(kernel):
        seconds, rest = divmod(record.time // 1000, 1_000_000)
        for line in record.text.split("\n"):
            lines.append(f"<{record.facility << 3 | record.level}>[{seconds:5}.{rest:06}] {line}")
    expected = guest.text("log").splitlines()
    assert len(expected) > 100
    assert lines[: len(expected)] == expected
