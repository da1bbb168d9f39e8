"""Measures the server against QEMU's own GDB stub, on the same paused guest.

::

    python -m tests.bench.bench_rsp [--rounds N]

Both are measured in each round, one after the other, so that what else the host
does hits both; the best round counts. Nothing is asserted: the table says what
was wanted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kvmgdb.demo.guest import GuestOptions, LinuxGuest
from kvmgdb.demo.kernel import fetch_kernel
from tests.bench.raw import RawClient
from tests.support.gdb import gdb_batch
from tests.support.qemu import free_port, qmp
from tests.support.require import PYPI_GDB, SYSTEM_GDB, why_not
from tests.support.server import KvmgdbServer

LENGTH = 16 << 20
OFFSET = 64 << 20  # into the guest's RAM
SMALL = 64
PASSES = 3
ROUND_TRIPS = 1000
STEPS = 200
_GDBS = {"gdb": SYSTEM_GDB, "gdb18": PYPI_GDB}
_IN_GDB = Path(__file__).with_name("in_gdb.py")

Results = dict[str, float]


@dataclass(frozen=True)
class Piece:
    """Some of the guest's RAM: where it is (GVA), and what it holds."""

    address: int
    data: bytes

    @property
    def zeros(self) -> int:
        """Per cent of the bytes."""
        return 100 * self.data.count(0) // len(self.data)


class PausedGuest:
    """A booted Linux guest, paused. ``plain`` is RAM as it comes, ``dense`` that with
    the fewest zeros, which are what makes replies short."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="kvmgdb-bench-")
        self.path = Path(self._directory.name)
        self.monitor = self.path / "qmp"
        arguments = ("-qmp", f"unix:{self.monitor},server=on,wait=off")
        options = GuestOptions(name="kvmgdb-bench", memory=256, arguments=arguments)
        self.linux = LinuxGuest(fetch_kernel(), options)
        self.linux.wait_ready()
        pointer = self.linux.symbol("page_offset_base")
        qmp(self.monitor, "stop")
        # "ffffffff9a3c8e40: 0xffff9f0c40000000"
        self._direct_map = int(self.hmp(f"x/1gx {pointer:#x}").rpartition(":")[2], 16)
        self.plain = self._piece(OFFSET)
        pieces = [self._piece(offset) for offset in range(LENGTH, 8 * LENGTH, LENGTH)]
        self.dense = min(pieces, key=lambda piece: piece.zeros)

    def _piece(self, offset: int) -> Piece:
        saved = self.path / "expected"
        qmp(self.monitor, "pmemsave", val=offset, size=LENGTH, filename=str(saved))
        return Piece(self._direct_map + offset, saved.read_bytes())

    def hmp(self, line: str) -> str:
        return str(qmp(self.monitor, "human-monitor-command", **{"command-line": line}))

    def close(self) -> None:
        self.linux.close()
        self._directory.cleanup()


def in_gdb(gdb: str, port: int, guest: PausedGuest) -> Results:
    """What in_gdb.py measures."""
    output = gdb_batch(
        gdb,
        # Without the symbols that our server has and the stub has not: what GDB
        # does with them is no matter of the protocol.
        f"set sysroot {guest.path}/nothing",
        f"target remote 127.0.0.1:{port}",
        f"set $bench_address = {guest.plain.address}",
        f"set $bench_dense = {guest.dense.address}",
        f"set $bench_length = {LENGTH}",
        f'python gdb.set_convenience_variable("bench_file", "{guest.path}/dump")',
        f"source {_IN_GDB}",
        "detach",
        seconds=300,
    )
    results = {}
    for line in output.stdout.splitlines():
        if line.startswith("RESULT "):
            _, name, seconds = line.split()
            results[name] = float(seconds)
    if set(results) != {"dump", "dense", "registers", "stepi"}:
        raise SystemExit(f"{gdb} did not measure: {output.text}")
    return results


def raw(port: int, guest: PausedGuest) -> Results:
    """What a client of ours measures."""
    client = RawClient(port)
    largest_hex = (client.largest - 8) // 2
    results = {}
    for name, piece in (("read", guest.plain), ("dense", guest.dense)):
        results[f"{name} m"] = results[name] = _fastest(
            partial(client.check_hex, piece.address, piece.data, largest_hex)
        )
        if client.has_binary:
            results[name] = _fastest(
                partial(client.check_binary, piece.address, piece.data, client.largest)
            )
    address = guest.plain.address
    latencies = [
        _once(client, b"m%x,%x" % (address + SMALL * i, SMALL)) for i in range(ROUND_TRIPS)
    ]
    results["m p50"] = statistics.median(latencies)
    results["m p99"] = sorted(latencies)[len(latencies) * 99 // 100]
    results["g p50"] = statistics.median(_once(client, b"g") for _ in range(ROUND_TRIPS))
    results["step p50"] = statistics.median(_once(client, b"vCont;s:p1.1") for _ in range(STEPS))
    client.close()
    return results


def _fastest(action: Callable[[], None]) -> float:
    times = []
    for _ in range(PASSES):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return min(times)


def _once(client: RawClient, packet: bytes) -> float:
    begin = time.perf_counter()
    reply = client.ask(packet)
    elapsed = time.perf_counter() - begin
    if reply[:1] in (b"", b"E"):
        raise SystemExit(f"{packet!r} is answered with {reply!r}")
    return elapsed


def measure(port: int, guest: PausedGuest, gdbs: dict[str, str]) -> Results:
    results = raw(port, guest)
    for need, path in gdbs.items():
        for name, seconds in in_gdb(path, port, guest).items():
            results[f"{need} {name}"] = seconds
    return results


def with_stub(guest: PausedGuest, action: Callable[[int], Results]) -> Results:
    """Measures QEMU's own stub; the guest stands afterwards."""
    port = free_port()
    guest.hmp(f"gdbserver tcp:127.0.0.1:{port}")
    try:
        return action(port)
    finally:
        guest.hmp("gdbserver none")
        qmp(guest.monitor, "stop")


def with_server(guest: PausedGuest, action: Callable[[int], Results]) -> Results:
    """Measures ours; the guest stands afterwards."""
    with KvmgdbServer(str(guest.linux.pid)) as server:
        results = action(server.port)
    qmp(guest.monitor, "stop")
    return results


# What is shown: name, wanted (a ratio, or the most it may take in us).
ROWS: dict[str, tuple[str, str]] = {
    "read": ("raw read of 16 MiB, best packet", ">= 20 x"),
    "read m": ("raw read of 16 MiB, m", ""),
    "dense": ("the same, dense, best packet", ""),
    "dense m": ("the same, dense, m", ""),
    "m p50": ("m of 64 bytes, p50", "< 150 us"),
    "m p99": ("m of 64 bytes, p99", ""),
    "g p50": ("g, p50", ">= 1 x"),
    "step p50": ("vCont;s, p50", ""),
    "gdb dump": ("16 MiB through system GDB", ">= 5 x"),
    "gdb dense": ("dense 16 MiB through system GDB", ""),
    "gdb registers": ("4 registers through system GDB", ">= 1 x"),
    "gdb stepi": ("stepi through system GDB", ">= 1 x"),
    "gdb18 dump": ("16 MiB through GDB 18", ">= 5 x"),
    "gdb18 dense": ("dense 16 MiB through GDB 18", ""),
    "gdb18 registers": ("4 registers through GDB 18", ">= 1 x"),
    "gdb18 stepi": ("stepi through GDB 18", ">= 1 x"),
}


def table(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> str:
    lines = [f"{'':36}{'ours':>12}{'QEMU stub':>12}{'ratio':>9}   wanted"]
    for key, (label, wanted) in ROWS.items():
        if key in ours:
            mine, other = min(ours[key]), min(theirs[key])
            ratio = f"{other / mine:.2f} x"
            lines.append(f"{label:36}{_time(mine):>12}{_time(other):>12}{ratio:>9}   {wanted}")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 0.01 else f"{seconds * 1e6:.0f} us"


def main() -> None:
    parser = argparse.ArgumentParser(description="The server against QEMU's own GDB stub.")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    gdbs = {need: path for need, path in _GDBS.items() if not why_not(need)}
    ours: dict[str, list[float]] = defaultdict(list)
    theirs: dict[str, list[float]] = defaultdict(list)
    guest = PausedGuest()
    try:

        def action(port: int) -> Results:
            return measure(port, guest, gdbs)

        for number in range(rounds):
            if sys.stderr.isatty():
                print(f"round {number + 1} of {rounds}", end="\r", file=sys.stderr, flush=True)
            for kept, results in ((ours, with_server), (theirs, with_stub)):
                for name, seconds in results(guest, action).items():
                    kept[name].append(seconds)
    finally:
        guest.close()
    print(f"16 MiB of the guest's RAM, {guest.plain.zeros} % of its bytes are zero")
    print(f"the densest 16 MiB of it: {guest.dense.zeros} %")
    print(table(ours, theirs))


if __name__ == "__main__":
    main()
