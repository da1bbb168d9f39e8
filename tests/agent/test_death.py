"""``kill -9`` of any of the processes, in any state: the VMM lives, the guest
goes on, nothing of ours is left, and another agent can attach."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmgdb.machine.agent import Agent
from tests.agent.footprint import Footprint
from tests.agent.vm import IO, Vm, wait_until
from tests.support.require import requires

pytestmark = requires("kvm", "cc")
Start = Callable[..., Vm]

STATES = ("idle", "stopped", "armed", "at_breakpoint", "stepping", "watching", "sampling")


@pytest.fixture(
    params=[
        pytest.param("plain", id="plain"),
        pytest.param("qemu", id="qemu", marks=requires("qemu")),
    ]
)
def vm(request: pytest.FixtureRequest, start: Start, start_qemu: Start) -> Vm:
    # An agent that dies between a stop and the rewinding of the registers leaves
    # an -EINTR behind, which KVM's API allows at any time: a VMM must bear it.
    return start(2, "eintr") if request.param == "plain" else start_qemu(2)


class Server:
    """A process of its own that brings an agent into a state and keeps it there."""

    def __init__(self, vm: Vm, state: str) -> None:
        place = vm.symbols["inner_store"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.agent.server", state]
            + [str(number) for number in (vm.pid, place, vm.hva + place)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        assert len(words) == 1, "the server did not attach"
        self.agent = int(words[0])

    def guardian(self) -> int:
        children = Path(f"/proc/{self.agent}/task/{self.agent}/children").read_text().split()
        assert len(children) == 1
        return int(children[0])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def enter(vm: Vm) -> Iterator[Callable[[str], Server]]:
    servers: list[Server] = []

    def run(state: str) -> Server:
        servers.append(Server(vm, state))
        time.sleep(0.05)
        return servers[-1]

    yield run
    for server in servers:
        server.close()


def exists(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter: between open and read
        return False


def _wait_for_end(ended: list[int]) -> None:
    wait_until(lambda: not any(map(exists, ended)), "the end of agent and guardian")


def assert_clean(vm: Vm, before: Footprint, ended: list[int]) -> None:
    _wait_for_end(ended)
    vm.assert_progress()
    assert Footprint.of(vm) == before
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        vm.assert_history()
    vm.assert_progress()
    assert Footprint.of(vm) == before


@pytest.mark.parametrize("state", STATES)
def test_server_dies(vm: Vm, enter: Callable[[str], Server], state: str) -> None:
    before = Footprint.of(vm)
    server = enter(state)
    ended = [server.agent, server.guardian()]
    server.process.kill()
    assert_clean(vm, before, ended)


@pytest.mark.parametrize("state", STATES)
def test_agent_dies(vm: Vm, enter: Callable[[str], Server], state: str) -> None:
    before = Footprint.of(vm)
    server = enter(state)
    ended = [server.agent, server.guardian()]
    os.kill(server.agent, signal.SIGKILL)
    assert_clean(vm, before, ended)


@pytest.mark.parametrize("state", STATES)
def test_server_and_agent_die(vm: Vm, enter: Callable[[str], Server], state: str) -> None:
    before = Footprint.of(vm)
    server = enter(state)
    ended = [server.agent, server.guardian()]
    server.process.kill()
    os.kill(server.agent, signal.SIGKILL)
    assert_clean(vm, before, ended)


@pytest.mark.parametrize("state", STATES)
def test_guardian_dies_and_is_replaced(vm: Vm, enter: Callable[[str], Server], state: str) -> None:
    before = Footprint.of(vm)
    server = enter(state)
    first = server.guardian()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not exists(first), "the first guardian's end")
    wait_until(
        lambda: (
            Path(f"/proc/{server.agent}/task/{server.agent}/children").read_text().split()
            not in ([], [str(first)])
        ),
        "another guardian",
    )
    ended = [server.agent, server.guardian()]
    os.kill(server.agent, signal.SIGKILL)
    assert_clean(vm, before, ended)


@pytest.mark.parametrize("state", ["idle", "stopped", "sampling"])
def test_agent_and_guardian_die(vm: Vm, enter: Callable[[str], Server], state: str) -> None:
    """Nobody is left to put back what is harmless: a request for registers and
    a trampoline in padding. The guest goes on, and one can attach again."""
    server = enter(state)
    ended = [server.agent, server.guardian()]
    for pid in reversed(ended):
        os.kill(pid, signal.SIGKILL)
    _wait_for_end(ended)
    vm.assert_progress()
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        vm.assert_history()
    vm.assert_progress()


def test_agent_and_guardian_die_while_vcpus_are_being_stopped(
    vm: Vm, enter: Callable[[str], Server]
) -> None:
    """At any moment on the way to a stop outside KVM_RUN, and of a call made inside
    the VMM, its threads are fit to run on alone: their signals come through, and
    KVM_RUN does not return at once for ever."""
    rounds = 6
    chance = random.Random(rounds)
    before = Footprint.of(vm)
    vm.set_mode(IO)
    wait_until(lambda: vm.quad("io_rounds") > 0, "I/O")
    for _ in range(rounds):
        server = enter("calling")
        ended = [server.agent, server.guardian()]
        time.sleep(chance.random() * 0.05)
        for pid in reversed(ended):
            os.kill(pid, signal.SIGKILL)
        _wait_for_end(ended)
        vm.assert_progress()
        after = Footprint.of(vm)
        assert after.masks == before.masks
        assert not after.stopped
        assert not any(immediate_exit for _, immediate_exit in after.kvm_run)
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        vm.assert_history()
