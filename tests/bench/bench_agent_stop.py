"""Measures what it costs to stop a VM that runs, to read its registers, and to
let it go on.

::

    python -m tests.bench.bench_agent_stop [--vcpus N] [--stops N] [--seconds S]

"agent" times are taken in the agent, the others around a call of its Python
client. Guest speed is compared with that of the same guest untouched, in turns,
so that what else the host does hits both. What a sample costs the guest, ours and
one of QEMU's own stub, is told in guest time lost. Nothing is asserted: the table
says what was wanted.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

from kvmgdb.machine.agent import Agent
from kvmgdb.machine.kvm_sampling import KvmSampleStream
from kvmgdb.machine.sampling import SamplingPlan
from tests.agent.vm import Program, Vm
from tests.bench.guest_time import GuestTime, Work
from tests.support.qemu import free_port

TURNS = 4
# Samples a second that are asked for where ours are compared with those of QEMU's
# stub, which takes as many as it can.
COMPARED_RATES = (100.0, 1000.0)
GUESTS = Path(__file__).parents[1] / "agent" / "guests"
Sample = Callable[[], None]
Prepare = Callable[[], AbstractContextManager[Work]]


class QemuStub:
    """QEMU's own GDB server: interrupt, all registers, continue."""

    def __init__(self, port: int, vcpus: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 10.0)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._vcpus = vcpus
        self._buffer = b""
        self._ask(b"qSupported:multiprocess+;vContSupported+")
        self._ask(b"?")
        self._send(b"vCont;c")

    def sample(self) -> None:
        self._socket.sendall(b"\x03")
        self._receive()
        for vcpu in range(self._vcpus):
            self._ask(b"Hgp1.%x" % (vcpu + 1))
            self._ask(b"g")
        self._send(b"vCont;c")

    def _ask(self, payload: bytes) -> bytes:
        self._send(payload)
        return self._receive()

    def _send(self, payload: bytes) -> None:
        self._socket.sendall(b"$%s#%02x" % (payload, sum(payload) % 256))

    def _receive(self) -> bytes:
        while True:
            start, end = self._buffer.find(b"$"), self._buffer.find(b"#")
            if 0 <= start < end and len(self._buffer) >= end + 3:
                payload = self._buffer[start + 1 : end]
                self._buffer = self._buffer[end + 3 :]
                self._socket.sendall(b"+")
                return payload
            data = self._socket.recv(1 << 16)
            if not data:
                raise EOFError("QEMU's stub closed the connection")
            self._buffer += data

    def close(self) -> None:
        self._socket.close()


def show(name: str, seconds: list[float], wanted: str = "") -> None:
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    print(f"{name:44} p50 {p50 * 1e6:8.1f} us   p99 {p99 * 1e6:8.1f} us   {wanted}")


def latencies(vm: Vm, agent: Agent, stops: int) -> None:
    in_agent, around, held, read = [], [], [], []
    for _ in range(stops):
        start = time.perf_counter()
        agent.stop()
        stopped = time.perf_counter()
        for vcpu in range(vm.vcpus):
            agent.registers(vcpu)
        registers = time.perf_counter()
        in_agent.append(agent.elapsed)
        around.append(stopped - start)
        read.append(registers - stopped)
        agent.resume()
        # A reply is read when a CPU is free of vCPUs again: what the two requests
        # took on their way is what that of the stop did.
        held.append(around[-1] - in_agent[-1] + read[-1] + agent.elapsed)
        time.sleep(0.001)
    show(f"stop of all {vm.vcpus} vCPUs (agent)", in_agent, "wanted: p50 <= 70 us")
    show("stop of all, from Python", around)
    show("all registers as Python numbers", read)
    show("time held, from stopped to resumed", held)


def asked_inside(agent: Agent, stops: int) -> None:
    times = []
    agent.stop()
    for _ in range(stops):
        agent.ioctl(0, "GET_DEBUGREGS", bytes(128))
        times.append(agent.elapsed)
    agent.resume()
    show("one KVM call inside the VMM (agent)", times)


def run_at(rate: float, seconds: float, sample: Sample) -> tuple[int, int]:
    """Samples at a rate; returns how many were taken, and how many of them were late
    by a whole period."""
    start, late, done = time.perf_counter(), 0, 0
    while (now := time.perf_counter()) - start < seconds:
        due = start + done / rate
        if now < due:
            time.sleep(due - now)
        elif now > due + 1 / rate:
            late += 1
        sample()
        done += 1
    return done, late


def speed(vm: Vm, seconds: float, work: Callable[[], None]) -> float:
    """Rounds of the guest's loop per second, all vCPUs, while ``work`` runs."""
    before, start = sum(vm.counters()), time.perf_counter()
    work()
    remaining = seconds - (time.perf_counter() - start)
    if remaining > 0:
        time.sleep(remaining)
    return (sum(vm.counters()) - before) / (time.perf_counter() - start)


def slow_down(vm: Vm, rate: float, seconds: float, sample: Sample, wanted: str = "") -> None:
    ratios, late = [], 0

    def work() -> None:
        nonlocal late
        late += run_at(rate, seconds, sample)[1]

    for _ in range(TURNS):
        untouched = speed(vm, seconds, lambda: None)
        ratios.append(speed(vm, seconds, work) / untouched)
    print(
        f"guest speed at {rate:5.0f} Hz of stop, registers, resume:"
        f"    {statistics.median(ratios):6.1%}   ({late} late)   {wanted}"
    )


def asked(sample: Sample, rate: float, seconds: float) -> Prepare:
    """Samples that are asked for one by one."""

    def work() -> int:
        return run_at(rate, seconds, sample)[0]

    return lambda: nullcontext(work)


def by_itself(agent: Agent, rate: float, seconds: float) -> Prepare:
    """Samples that the agent takes by itself, as for a profile."""

    @contextmanager
    def prepare() -> Iterator[Work]:
        with closing(KvmSampleStream(agent, rate, SamplingPlan())) as stream:

            def work() -> int:
                time.sleep(seconds)
                return stream.counters().rounds

            yield work

    return prepare


def compare(
    vm: Vm, agent: Agent, rate: float, seconds: float, sample: Sample, stub: Sample
) -> None:
    """Guest time that one sample of all vCPUs costs each of them: the guest's speed
    with each way of sampling, in turns, against the guest untouched."""
    threads = [agent.shared.vcpu[vcpu].tid for vcpu in range(vm.vcpus)]
    guest = GuestTime(lambda: sum(vm.counters()), vm.pid, threads)
    ways = {
        "QEMU's stub": asked(stub, rate, seconds),
        "the agent, asked from Python": asked(sample, rate, seconds),
        "the agent by itself": by_itself(agent, rate, seconds),
    }
    lost: dict[str, list[float]] = defaultdict(list)
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(TURNS):
        for name, prepare in ways.items():
            share, done = guest.share_left(seconds, prepare)
            lost[name].append((1 - share) * seconds / max(done, 1))
            taken[name].append(done / seconds)
    stubs = statistics.median(lost["QEMU's stub"])
    print(f"guest time that a sample costs each vCPU, at {rate:.0f} Hz:")
    for name, times in lost.items():
        cost = statistics.median(times)
        # Less than nothing is what else the host did meanwhile.
        ratio = f"{stubs / cost:.1f} x" if cost > 0 else "too little to tell"
        wanted = "wanted: >= 10 x" if name == "the agent by itself" else ""
        reached = f"({statistics.median(taken[name]):.0f} Hz)"
        print(f"  {name:30} {reached:>11} {cost * 1e6:12.1f} us   {ratio:>12}   {wanted}")


def measure(vm: Vm, port: int, stops: int, seconds: float) -> None:
    with Agent(vm.pid) as agent:
        agent.attach()

        def sample() -> None:
            agent.stop()
            for vcpu in range(vm.vcpus):
                agent.register_structures(vcpu)
            agent.resume()

        latencies(vm, agent, stops)
        asked_inside(agent, stops)
        for rate, wanted in ((100, ""), (1000, "wanted: >= 85 %")):
            slow_down(vm, rate, seconds, sample, wanted)
        stub = QemuStub(port, vm.vcpus)
        for compared in COMPARED_RATES:
            compare(vm, agent, compared, seconds, sample, stub.sample)
        stub.close()
        agent.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vcpus", type=int, default=2)
    parser.add_argument("--stops", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvmgdb-bench-") as name:
        program = Program.build(GUESTS, Path(name))
        port = free_port()
        vm = Vm.qemu(program, options.vcpus, ["-gdb", f"tcp:127.0.0.1:{port}"])
        try:
            measure(vm, port, options.stops, options.seconds)
        finally:
            vm.close()


if __name__ == "__main__":
    main()
