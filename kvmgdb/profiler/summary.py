"""What a recording amounts to, and what it lacks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from kvmgdb.profiler.recording import NO_VCPU, Recording, State


@dataclass(frozen=True)
class Held:
    """How long a vCPU stood still for its samples, in ns; of those samples that
    stopped it."""

    vm: str
    vcpu: int
    stops: int
    median_ns: int
    p99_ns: int
    max_ns: int
    total_ns: int


@dataclass(frozen=True)
class Summary:
    """``samples`` are those of running vCPUs, ``idle`` those of halted ones and
    ``sleeping`` those of tasks that did not run. ``lost`` is the part of the
    guest's time (0 to 1) for which its vCPUs stood still, or None where the
    recording does not tell."""

    target: str
    rate: float
    start: datetime
    seconds: float
    samples: int
    idle: int
    sleeping: int
    errors: int
    broken: int
    missed: int
    dropped: int
    held: tuple[Held, ...]
    lost: float | None
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, recording: Recording) -> Summary:
        columns = recording.columns
        running = columns.state.count(State.RUNNING)
        idle = columns.state.count(State.HALTED)
        held = _held(recording)
        vcpus = {
            place for place in zip(columns.vm, columns.vcpu, strict=True) if place[1] != NO_VCPU
        }
        time = recording.duration_ns * len(vcpus)
        return cls(
            target=recording.target,
            rate=recording.rate,
            start=datetime.fromtimestamp(min(recording.start_ns // 10**9, 1 << 35), UTC),
            seconds=recording.duration_ns / 1e9,
            samples=running,
            idle=idle,
            sleeping=len(recording) - running - idle,
            errors=recording.counters.errors,
            broken=recording.counters.broken,
            missed=recording.counters.missed,
            dropped=recording.counters.dropped,
            held=held,
            lost=min(sum(vcpu.total_ns for vcpu in held) / time, 1.0) if time else None,
            remarks=tuple(recording.remarks),
        )

    def facts(self) -> dict[str, object]:
        """For programs."""
        return {**asdict(self), "start": self.start.isoformat()}

    def lines(self) -> list[str]:
        """For people."""
        at = f" at {self.rate:g} Hz" if self.rate else ""
        lines = [
            f"{self.samples} samples of {self.target} in {self.seconds:.1f} s{at}, "
            f"{self.start:%Y-%m-%d %H:%M:%S} UTC"
        ]
        rest = [
            f"{count} {what}"
            for count, what in (
                (self.idle, "of halted vCPUs"),
                (self.sleeping, "of sleeping tasks"),
            )
            if count
        ]
        losses = [
            f"{self.errors} errors",
            f"{self.broken} broken stacks",
            f"{self.missed} missed deadlines",
            f"{self.dropped} dropped",
        ]
        lines.append(", ".join(rest + losses))
        for vcpu in self.held:
            where = f"{vcpu.vm}, " if len({held.vm for held in self.held}) > 1 else ""
            lines.append(
                f"{where}vCPU {vcpu.vcpu} held per sample: p50 {vcpu.median_ns / 1e3:.0f} us, "
                f"p99 {vcpu.p99_ns / 1e3:.0f} us, max {vcpu.max_ns / 1e3:.0f} us"
            )
        if self.lost is not None and self.held:
            lines.append(f"guest time lost: {100 * self.lost:.2f} %")
        lines += self.remarks
        return lines


def _held(recording: Recording) -> tuple[Held, ...]:
    columns = recording.columns
    times: dict[tuple[int, int], list[int]] = defaultdict(list)
    for vm, vcpu, held in zip(columns.vm, columns.vcpu, columns.held_ns, strict=True):
        if held:
            times[vm, vcpu].append(held)
    found = []
    for (vm, vcpu), held_ns in sorted(times.items()):
        held_ns.sort()
        count = len(held_ns)
        found.append(
            Held(
                recording.vms[vm].name,
                vcpu,
                count,
                held_ns[count // 2],
                held_ns[min(count * 99 // 100, count - 1)],
                held_ns[-1],
                sum(held_ns),
            )
        )
    return tuple(found)
