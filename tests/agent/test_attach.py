"""Attach, stop, read registers, resume, detach: on both kinds of VMM."""

from __future__ import annotations

import json
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmgdb.machine.agent import Agent
from tests.agent.footprint import Footprint
from tests.agent.vm import COMPUTE, HALT, IO, Vm, wait_until
from tests.support.qemu import qmp
from tests.support.require import requires

pytestmark = requires("kvm", "cc")
Start = Callable[..., Vm]

_EXIT_IO, _EXIT_MMIO = 2, 6  # KVM_EXIT_*, linux/kvm.h

VMMS = [
    pytest.param(("plain", (), 1), id="plain-1"),
    pytest.param(("plain", (), 2), id="plain-2"),
    pytest.param(("plain", ("irqchip", "memfd"), 2), id="plain-irqchip-memfd"),
    pytest.param(("qemu", (), 1), id="qemu-1", marks=requires("qemu")),
    pytest.param(("qemu", ("-machine", "q35"), 2), id="qemu-q35-2", marks=requires("qemu")),
    pytest.param(
        ("qemu", ("-machine", "pc,kernel-irqchip=off"), 2),
        id="qemu-irqchip-off",
        marks=requires("qemu"),
    ),
]


@pytest.fixture(params=VMMS)
def vm(request: pytest.FixtureRequest, start: Start, start_qemu: Start) -> Vm:
    kind, options, vcpus = request.param
    return (start if kind == "plain" else start_qemu)(vcpus, *options)


def kvm_regs(agent: Agent, vcpu: int) -> tuple[int, ...]:
    """What KVM_GET_REGS says, asked inside the VMM: a second opinion."""
    return struct.unpack("<18Q", agent.ioctl(vcpu, "GET_REGS", bytes(144)))


def test_stop_shows_true_registers_and_resume_goes_on(vm: Vm) -> None:
    with Agent(vm.pid) as agent:
        agent.attach()
        for _ in range(5):
            agent.stop()
            before = vm.counters()
            for vcpu in range(vm.vcpus):
                registers = agent.registers(vcpu)
                asked = kvm_regs(agent, vcpu)
                shown = agent.shared.vcpu[vcpu].regs
                assert asked == tuple(getattr(shown, name) for name in agent._fields("regs"))
                assert registers["cr3"] == vm.symbols["pml4"]
                assert vm.symbols["_start"] <= registers["rip"] < vm.symbols["pml4"]
            time.sleep(0.02)
            assert vm.counters() == before
            agent.resume()
            vm.assert_progress()
        agent.stop()
        vm.assert_history()
    vm.assert_progress()


def test_detach_leaves_nothing(vm: Vm) -> None:
    before = Footprint.of(vm)
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        kvm_regs(agent, 0)
        agent.resume()
        agent.detach()
    vm.assert_progress()
    assert Footprint.of(vm) == before
    with Agent(vm.pid) as agent:
        agent.attach()
    vm.assert_progress()


def test_many_rounds_under_io_do_each_access_once(vm: Vm, request: pytest.FixtureRequest) -> None:
    """QEMU has no device at these ports: there the VMM only must live."""
    rounds = 200
    plain = "plain" in request.node.name
    vm.set_mode(IO)
    wait_until(lambda: vm.quad("io_rounds") > 10, "I/O")
    chance = random.Random(1)
    with Agent(vm.pid) as agent:
        agent.attach()
        for _ in range(rounds):
            agent.stop()
            agent.resume()
            time.sleep(chance.random() * 0.002)
        agent.stop()
        vm.assert_history()
    before = vm.quad("io_rounds")
    wait_until(lambda: vm.quad("io_rounds") > before + 10, "I/O")
    if plain:
        assert vm.quad("errors") == 0
    vm.set_mode(COMPUTE)
    vm.assert_progress()


def test_one_vcpu_stops_alone(start: Start) -> None:
    vm = start(2)
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop(1)
        before = vm.counters()
        wait_until(lambda: vm.counters()[0] > before[0], "progress of vCPU 0")
        assert vm.counters()[1] == before[1]
        assert agent.shared.vcpu[0].state == agent.constant("VCPU_RUNNING")
        agent.resume()
        vm.assert_progress()


def _stop_halted(agent: Agent, vm: Vm) -> None:
    """Stops them once each has come to its HLT."""

    def halted() -> bool:
        agent.stop()
        if all(agent.registers(vcpu)["rip"] == vm.symbols["do_halt"] + 1 for vcpu in range(2)):
            return True
        agent.resume()
        return False

    wait_until(halted, "both vCPUs to halt")


def test_a_vcpu_thread_of_real_time_priority(start: Start) -> None:
    """It would leave no time to an agent without."""
    vm = start(2)
    with Agent(vm.pid) as agent:
        agent.attach()
        tid = agent.shared.vcpu[0].tid
        agent.detach()
    try:
        os.sched_setscheduler(tid, os.SCHED_RR, os.sched_param(7))
    except PermissionError:
        pytest.skip("this user may not give real-time priorities")
    with Agent(vm.pid) as agent:
        agent.attach()
        assert os.sched_getscheduler(agent.process.pid) == os.SCHED_FIFO
        assert os.sched_getparam(agent.process.pid).sched_priority == 8
        for _ in range(20):
            agent.stop()
            agent.resume()
        vm.assert_progress()
    assert os.sched_getscheduler(tid) == os.SCHED_RR
    assert os.sched_getparam(tid).sched_priority == 7
    vm.assert_progress()


@pytest.mark.parametrize("option", ["", "irqchip"])
def test_halted_vcpu_stops(start: Start, option: str) -> None:
    """In the kernel with an irqchip, in the VMM without."""
    vm = start(2, *option.split())
    vm.set_mode(HALT)
    with Agent(vm.pid) as agent:
        agent.attach()
        _stop_halted(agent, vm)
        for vcpu in range(2):
            assert kvm_regs(agent, vcpu)[16] == agent.registers(vcpu)["rip"]
            state = "STOPPED" if option else "HALTED"
            assert agent.shared.vcpu[vcpu].state == agent.constant(f"VCPU_{state}")
        agent.resume()
        agent.stop()
    assert vm.process.poll() is None


@requires("qemu")
@pytest.mark.parametrize("irqchip", ["on", "off"])
def test_halted_vcpus_of_qemu_stop(start_qemu: Start, irqchip: str) -> None:
    """Without KVM's irqchip QEMU's threads wait in futex: no register of theirs
    may be put back as it was found there."""
    vm = start_qemu(2, "-machine", f"pc,kernel-irqchip={irqchip}")
    vm.set_mode(HALT)
    with Agent(vm.pid) as agent:
        agent.attach()
        _stop_halted(agent, vm)
        agent.resume()
        for _ in range(10):
            agent.stop()
            for vcpu in range(2):
                assert agent.registers(vcpu)["rip"] == vm.symbols["do_halt"] + 1
            agent.resume()
    assert vm.process.poll() is None


@requires("qemu")
def test_a_paused_qemu(start_qemu: Start, tmp_path: Path) -> None:
    """Attaches to a machine whose monitor holds it, which goes on when told."""
    monitor = tmp_path / "qmp"
    vm = start_qemu(2, "-qmp", f"unix:{monitor},server=on,wait=off")
    qmp(monitor, "stop")
    before = vm.counters()
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        for vcpu in range(2):
            assert kvm_regs(agent, vcpu)[16] == agent.registers(vcpu)["rip"]
        agent.resume()
        time.sleep(0.1)
        assert vm.counters() == before
        qmp(monitor, "cont")
        vm.assert_progress()
        agent.stop()
        vm.assert_history()


@requires("qemu")
def test_a_qemu_that_was_paused_in_the_middle_of_io(start_qemu: Start, tmp_path: Path) -> None:
    """Its last exit is an access that QEMU has had completed: it stands all the same."""
    monitor = tmp_path / "qmp"
    vm = start_qemu(2, "-qmp", f"unix:{monitor},server=on,wait=off")
    vm.set_mode(IO)
    wait_until(lambda: vm.quad("io_rounds") > 10, "I/O")
    accesses = 0
    for _ in range(40):
        qmp(monitor, "stop")
        with Agent(vm.pid) as agent:
            agent.attach()
            agent.stop()
            for vcpu in range(2):
                assert kvm_regs(agent, vcpu)[16] == agent.registers(vcpu)["rip"]
                accesses += agent.shared.vcpu[vcpu].exit_reason in (_EXIT_IO, _EXIT_MMIO)
            before = vm.quad("io_rounds")
            agent.resume()
        assert vm.quad("io_rounds") == before
        qmp(monitor, "cont")
        if accesses >= 2:
            break
        vm.assert_progress()
    assert accesses, "QEMU was never paused after an access"
    vm.assert_progress()
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        vm.assert_history()


@requires("qemu")
def test_qemu_pauses_and_continues_while_it_is_stopped(start_qemu: Start, tmp_path: Path) -> None:
    """QEMU kicks its vCPUs by SIGUSR1: none of its signals may be lost."""
    cycles = 100
    monitor = tmp_path / "qmp"
    vm = start_qemu(2, "-qmp", f"unix:{monitor},server=on,wait=off")
    stops = 0
    with Agent(vm.pid) as agent, socket.socket(socket.AF_UNIX) as connection:
        agent.attach()
        connection.connect(str(monitor))
        stream = connection.makefile("rwb", 0)
        commands = ["qmp_capabilities", *(["stop", "cont"] * cycles)]
        for number, name in enumerate(commands):
            stream.write(json.dumps({"execute": name}).encode() + b"\n")
            deadline = time.monotonic() + 60
            while not select.select([connection], [], [], 0.0)[0]:
                assert time.monotonic() < deadline, f"QEMU hangs at command {number}"
                agent.stop()
                agent.resume()
                stops += 1
            while b'"return"' not in stream.readline():
                pass
    assert stops > cycles
    vm.assert_progress()


def test_closing_the_socket_detaches(start: Start) -> None:
    vm = start(2)
    before = Footprint.of(vm)
    agent = Agent(vm.pid)
    agent.attach()
    agent.stop()
    agent.close()
    vm.assert_progress()
    assert Footprint.of(vm) == before
