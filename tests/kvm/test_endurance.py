"""The guest comes first: it and its VMM bear any number of stops."""

from __future__ import annotations

import os
import random
import struct
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.interface import Action
from kvmgdb.machine.kvm import KvmMachine
from kvmgdb.machine.qmp import Qmp
from kvmgdb.machine.registers import BASIC_GROUPS
from tests.kvm.guests import image, own_vmm_guest, qemu_guest
from tests.support.polling import wait_for
from tests.support.require import requires

pytestmark = [requires("kvm", "qemu", "cc"), pytest.mark.timeout(900)]

ROUNDS = int(os.environ.get("KVMGDB_STOP_ROUNDS", "2000"))
CYCLES = 300
SPELL = 0.01  # seconds that QEMU runs or pauses, at most
PAUSE = 0.001  # seconds that the guest runs between two stops
SECONDS = 180.0


class _IoGuest:
    """The counters of tests/guests/freestanding/io.c, of a stopped guest."""

    def __init__(self, machine: KvmMachine) -> None:
        self._machine = machine

    def _value(self, name: str) -> int:
        gpa = image("io").symbols[name]
        return int(struct.unpack("<Q", self._machine.memory.read(gpa, 8))[0])

    @property
    def rounds(self) -> int:
        return self._value("progress")

    def assert_right(self) -> None:
        """What it read is what it wrote, in each round until now: an access that
        was lost or doubled would shift everything behind it."""
        assert self._value("io_errors") == 0


@pytest.mark.parametrize("vmm", ["qemu", "kvmgdb-vmm"])
def test_rounds_under_io_do_each_access_once(vmm: str) -> None:
    chance = random.Random(vmm)
    vmm_of = qemu_guest("kvmgdb-endurance", "io") if vmm == "qemu" else own_vmm_guest("io")
    with vmm_of as pid:
        machine = KvmMachine.open(pid)
        try:
            guest = _IoGuest(machine)
            machine.stop()
            wait_for(
                "the guest does I/O", lambda: _run_for(machine, 0.05) and guest.rounds, SECONDS
            )
            first = guest.rounds
            places = set()
            for _ in range(ROUNDS):
                _run_for(machine, chance.random() * PAUSE)
                places.add(machine.vcpus[0].read_registers(BASIC_GROUPS).get("rip"))
            guest.assert_right()
            last = guest.rounds
            assert last > first
            # It was also stopped at the accesses themselves.
            accesses = ("io_out_here", "io_in_here", "io_outs_here", "io_read_here")
            assert places & {image("io").symbols[name] for name in accesses}
            wait_for(
                "the guest goes on",
                lambda: _run_for(machine, 0.05) and guest.rounds > last + 10,
                SECONDS,
            )
            guest.assert_right()
        finally:
            machine.close()


def _run_for(machine: KvmMachine, seconds: float) -> bool:
    machine.resume(dict.fromkeys(range(len(machine.vcpus)), Action.CONTINUE))
    time.sleep(seconds)
    machine.stop()
    return True


class _Sampler:
    """Stops the machine, reads its registers and resumes it, about a thousand
    times a second, on a thread of its own."""

    def __init__(self, pid: int) -> None:
        self.samples = 0
        self._machine = KvmMachine.open(pid)
        self._machine.stop()
        self._done = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._done.is_set():
                for vcpu in self._machine.vcpus:
                    assert vcpu.read_registers(BASIC_GROUPS).get("rip") is not None
                self.samples += 1
                _run_for(self._machine, PAUSE)
        except BaseException as error:
            self._failure = error

    def __enter__(self) -> _Sampler:
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join(SECONDS)
        self._machine.close()
        if self._failure is not None:
            raise self._failure


def _progress(monitor: Qmp, directory: str) -> Sequence[int]:
    """Of the vCPUs of chain.c, by QEMU's own word."""
    path = Path(directory) / "memory"
    monitor.execute("pmemsave", val=image("chain").symbols["progress"], size=16, filename=str(path))
    return struct.unpack("<2Q", path.read_bytes())


def test_qemu_pauses_and_continues_while_it_is_sampled() -> None:
    """QEMU stops and starts its vCPUs by signals: none may be lost or delayed for
    ever, whatever moment they meet."""
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as directory:
        socket = Path(directory) / "qmp"
        arguments = ("-qmp", f"unix:{socket},server=on,wait=off")
        with qemu_guest("kvmgdb-endurance", "chain", arguments) as pid:
            monitor = Qmp(SocketAddress(path=str(socket)))
            try:
                with _Sampler(pid) as sampler:
                    for _ in range(CYCLES):
                        monitor.execute("stop")
                        time.sleep(chance.random() * SPELL)
                        assert monitor.execute("query-status")["status"] == "paused"
                        monitor.execute("cont")
                        time.sleep(chance.random() * SPELL)
                    assert monitor.execute("query-status")["status"] == "running"
                assert sampler.samples > CYCLES
                before = _progress(monitor, directory)
                wait_for(
                    "each vCPU goes on",
                    lambda: all(
                        now > then
                        for now, then in zip(_progress(monitor, directory), before, strict=True)
                    ),
                    SECONDS,
                )
                assert monitor.execute("query-status")["status"] == "running"
            finally:
                monitor.close()
