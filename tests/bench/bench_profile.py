"""Measures what a profile costs the guest, and what it costs to make one.

::

    python -m tests.bench.bench_profile [--seconds S] [--turns N] [--samples N]

Guest speed is compared with that of the same guest untouched, in turns, so that
what else the host does hits both; what the vCPU threads waited for a CPU of the
host (/proc/PID/task/TID/schedstat) is not counted. Samples per second of guest time lost are those
of the profiler, of QEMU's own stub (interrupt, registers, continue), and of
``gdb -batch -ex bt`` in a loop. Nothing is asserted: the table says what was wanted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext

from kvmgdb.demo.kernel import fetch_kernel
from kvmgdb.machine.interface import Action
from kvmgdb.machine.kvm import KvmMachine
from kvmgdb.machine.sampling import SampleStream, SamplingCounters
from kvmgdb.profiler.recording import Recording
from kvmgdb.profiler.session import Session, Wanted
from tests.bench.bench_agent_stop import QemuStub
from tests.bench.guest_time import GuestTime, Work
from tests.kvm.adopted import linux_under_kvm
from tests.kvm.guests import image, own_vmm_guest, qemu_guest
from tests.support.qemu import free_port
from tests.support.require import SYSTEM_GDB

VCPUS = 2


class Guest:
    """The guest ``split``, and how fast it goes."""

    def __init__(self, pid: int) -> None:
        self.machine = KvmMachine.open(pid)
        self.machine.stop()
        self.machine.resume(dict.fromkeys(range(VCPUS), Action.CONTINUE))
        self._progress = image("split").symbols["progress"]
        vcpus = self.machine.agent.shared.vcpu
        self.time = GuestTime(self._rounds, pid, [vcpus[i].tid for i in range(VCPUS)])

    def _rounds(self) -> int:
        data = self.machine.memory.read(self._progress, 8 * VCPUS)
        return sum(memoryview(data).cast("Q"))


def compare(
    guest: Guest, seconds: float, turns: int, prepare: Callable[[], AbstractContextManager[Work]]
) -> tuple[float, float]:
    """Median of the guest's speed as a share of untouched, and samples a second of
    guest time lost."""
    shares, samples, lost = [], 0, 0.0
    for _ in range(turns):
        share, done = guest.time.share_left(seconds, prepare)
        shares.append(share)
        samples += done
        lost += seconds * max(0.0, 1 - share)
    return statistics.median(shares), samples / lost if lost else float("inf")


def profile(session: Session, seconds: float) -> int:
    before = len(session.recording)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        session.wait(min(0.1, left))
        session.drain()
    return len(session.recording) - before


def show(name: str, value: str, wanted: str = "") -> None:
    print(f"{name:52} {value:>24}   {wanted}")


def cost_to_guest(pid: int, seconds: float, turns: int) -> None:
    guest = Guest(pid)
    with closing(guest.machine):
        for rate, wanted in ((100.0, "wanted: >= 98.5 %"), (1000.0, "wanted: >= 85 %")):
            sessions: list[Session] = []

            @contextmanager
            def prepare(rate: float = rate, sessions: list[Session] = sessions) -> Iterator[Work]:
                recording = Recording("bench", rate)
                session = Session(guest.machine, recording, "bench", rate, Wanted())
                session.begin()
                sessions.append(session)
                yield lambda: profile(session, seconds - 0.05)
                session.close()

            share, per_second = compare(guest, seconds, turns, prepare)
            show(f"guest speed at {rate:.0f} Hz, {VCPUS} vCPUs", f"{share:.1%}", wanted)
            show("  samples per second of guest time lost", f"{per_second:,.0f}")
            times = sorted(time for s in sessions for time in s.recording.columns.held_ns if time)
            p50, p99 = times[len(times) // 2] / 1e3, times[len(times) * 99 // 100] / 1e3
            show("  vCPU held for a sample, p50", f"{p50:.1f} us", "wanted: <= 80 us")
            show("  vCPU held for a sample, p99", f"{p99:.1f} us")


def cost_of_stub(seconds: float, turns: int) -> None:
    port = free_port()
    arguments = ("-gdb", f"tcp:127.0.0.1:{port}")
    with qemu_guest("kvmgdb-bench-profile", "split", arguments) as pid:
        guest = Guest(pid)
        with closing(guest.machine):
            stub = QemuStub(port, VCPUS)

            def ask() -> int:
                end, done = time.monotonic() + seconds - 0.1, 0
                while time.monotonic() < end:
                    stub.sample()
                    done += VCPUS
                    time.sleep(0.01)
                return done

            share, per_second = compare(guest, seconds, turns, lambda: nullcontext(ask))
            show("guest speed, QEMU's stub every 10 ms", f"{share:.1%}")
            show("  samples per second of guest time lost", f"{per_second:,.0f}")
            stub.close()

            def gdb() -> int:
                end, done = time.monotonic() + seconds - 0.1, 0
                command = [SYSTEM_GDB, "-nx", "-batch", "-ex", f"target remote :{port}"]
                command += ["-ex", "thread apply all bt", str(image("split").elf)]
                while time.monotonic() < end:
                    subprocess.run(command, capture_output=True, timeout=60, check=False)
                    done += VCPUS
                return done

            share, per_second = compare(guest, seconds, 1, lambda: nullcontext(gdb))
            show("guest speed, `gdb -batch` with bt in a loop", f"{share:.1%}")
            show("  samples per second of guest time lost", f"{per_second:,.0f}")


class Kept(SampleStream):
    """Samples that have been taken, to be given out again."""

    def __init__(self, stream: SampleStream) -> None:
        self._stream = stream
        self._data = bytearray()
        self._given = 0

    def keep(self, seconds: float) -> None:
        self._stream.wait(seconds)
        while len(records := self._stream.peek()):
            self._data += records
            self._stream.advance(len(records))

    def peek(self) -> memoryview:
        return memoryview(self._data)[self._given :]

    def advance(self, length: int) -> None:
        self._given += length

    def counters(self) -> SamplingCounters:
        return self._stream.counters()

    def wait(self, seconds: float) -> None:
        self._stream.wait(seconds)

    def close(self) -> None:
        self._stream.close()


def cost_to_name(samples: int) -> None:
    """Unwinding and naming, of stacks of stock Linux with user frames."""
    with linux_under_kvm(fetch_kernel()) as linux:
        machine = KvmMachine.open(linux.pid)
        with closing(machine):
            recording = Recording("bench", 1000.0)
            session = Session(machine, recording, "bench", 1000.0, Wanted())
            session.begin()
            kept = Kept(session.stream)
            end = time.monotonic() + 60
            while kept.counters().samples < samples and time.monotonic() < end:
                kept.keep(0.2)
            session.stream = kept
            begin = time.process_time()
            session.drain()
            spent = time.process_time() - begin
            session.close()
            made = len(recording)
            show(
                f"unwinding and naming, of {made} samples",
                f"{1e6 * spent / made:.1f} us each",
                "wanted: <= 20 us",
            )
            broken = recording.counters.broken
            show("  broken stacks", f"{broken} ({broken / made:.2%})", "wanted: < 0.5 %")
            depth = sum(len(recording.stack_frames(s)) for s in recording.columns.stack) / made
            show("  frames of a stack, on average", f"{depth:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--samples", type=int, default=5000)
    options = parser.parse_args()
    with own_vmm_guest("split", VCPUS) as pid:
        cost_to_guest(pid, options.seconds, options.turns)
    cost_of_stub(options.seconds, options.turns)
    cost_to_name(options.samples)


if __name__ == "__main__":
    main()
