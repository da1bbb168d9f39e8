"""The sampler of the agent: its ring, and what else a client may do meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from kvmgdb.errors import InvalidRangeError
from kvmgdb.machine import kvm_sampling
from kvmgdb.machine.agent import Agent
from kvmgdb.machine.kvm_sampling import KvmSampleStream
from kvmgdb.machine.sampling import SamplingPlan, StackArea
from kvmgdb.profiler.native import EXITED, RUNNING, Row, StackMaker
from tests.agent.vm import IO, Vm, wait_until
from tests.support.require import requires

pytestmark = requires("kvm", "cc")

SECONDS = 60.0
PLAN = SamplingPlan(kernel_bytes=4096)


@pytest.fixture
def vm(start: Callable[..., Vm]) -> Vm:
    return start(2)


@pytest.fixture
def agent(vm: Vm) -> Iterator[Agent]:
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.regions()
        yield agent


def _take(stream: KvmSampleStream, maker: StackMaker) -> list[Row]:
    """All that has arrived; every address has a name of its own."""
    rows = []
    while len(records := stream.peek()):
        taken = maker.take(records)
        rows += taken.rows
        stream.advance(taken.consumed)
        for place in taken.places:
            maker.name(place, range(place.address, place.address + 1), 1)
    return rows


def test_a_full_ring_drops_and_goes_on(
    agent: Agent, vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm_sampling, "_RING_BYTES", 1 << 18)
    stream = KvmSampleStream(agent, 2000.0, PLAN)
    maker = StackMaker(None, 0)
    rows: list[Row] = []
    with closing(stream):
        wait_until(lambda: stream.counters().dropped > 10, "a full ring", SECONDS)
        kept = stream.counters().samples
        # No record is lost or damaged where the ring wraps.

        def round_and_round() -> bool:
            rows.extend(_take(stream, maker))
            return len(rows) > 5 * kept

        wait_until(round_and_round, "more samples than the ring holds", SECONDS)
    rows += _take(stream, maker)
    assert len(rows) == stream.counters().samples
    assert {row.vcpu for row in rows} == {0, 1}
    assert all(row.state in (RUNNING, EXITED) for row in rows)
    times = [[row.time_ns for row in rows if row.vcpu == vcpu] for vcpu in (0, 1)]
    assert all(each == sorted(each) for each in times)
    vm.assert_progress()


def test_the_client_may_stop_the_machine_meanwhile(agent: Agent, vm: Vm) -> None:
    with closing(KvmSampleStream(agent, 1000.0, PLAN)) as stream:
        for _ in range(50):
            agent.stop()
            before = stream.counters().samples
            assert all(agent.registers(vcpu)["rip"] for vcpu in (0, 1))
            assert stream.counters().samples == before
            agent.resume()
        wait_until(lambda: stream.counters().samples > before, "samples again", SECONDS)
    agent.stop()
    vm.assert_history()
    agent.resume()
    vm.assert_progress()


def test_sampling_again_and_again(agent: Agent, vm: Vm) -> None:
    for _ in range(20):
        with closing(KvmSampleStream(agent, 2000.0, PLAN)) as stream:
            wait_until(lambda: stream.counters().samples > 0, "a sample", SECONDS)
    vm.assert_progress()


def test_exits_of_a_vcpu(agent: Agent, vm: Vm) -> None:
    """It may be met in its VMM, and each I/O is done once all the same."""
    vm.set_mode(IO)
    maker, rows = StackMaker(None, 0), []
    with closing(KvmSampleStream(agent, 2000.0, PLAN)) as stream:

        def met() -> bool:
            rows.extend(_take(stream, maker))
            return any(row.state == EXITED for row in rows) and len(rows) > 200

        wait_until(met, "samples of a VMM at work", SECONDS)
    agent.stop()
    vm.assert_history()
    agent.resume()
    vm.assert_progress()


@pytest.mark.parametrize(
    ("rate", "plan"),
    [
        (1e6, PLAN),
        (100.0, SamplingPlan(areas=(StackArea(0, 1, 2),) * 513)),
    ],
)
def test_what_makes_no_sense_is_refused(
    agent: Agent, vm: Vm, rate: float, plan: SamplingPlan
) -> None:
    with pytest.raises(InvalidRangeError):
        KvmSampleStream(agent, rate, plan)
    vm.assert_progress()


def test_one_sampler_at_a_time(agent: Agent) -> None:
    with closing(KvmSampleStream(agent, 100.0, PLAN)), pytest.raises(InvalidRangeError):
        KvmSampleStream(agent, 100.0, PLAN)
