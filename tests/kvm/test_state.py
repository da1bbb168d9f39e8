"""What is said of a machine that nobody debugs: that it runs, or who holds it."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import closing
from pathlib import Path

from kvmgdb.machine.kvm import KvmMachine
from kvmgdb.machine.target import parse_target
from tests.kvm.guests import own_vmm_guest, qemu_guest
from tests.support.polling import wait_for
from tests.support.qemu import qmp
from tests.support.require import requires

pytestmark = requires("kvm", "qemu", "cc")


def _wait_for_state(machine: object, state: str) -> None:
    """The guest is on its way there, and the host may be busy."""
    assert isinstance(machine, KvmMachine)
    wait_for(f"the state {state!r}", lambda: machine.info().state == state)


def test_qemu_that_its_monitor_pauses(tmp_path: Path) -> None:
    monitor = tmp_path / "qmp"
    arguments = ["-qmp", f"unix:{monitor},server=on,wait=off"]
    with qemu_guest("kvmgdb-state", "chain", arguments) as pid:
        with closing(parse_target(str(pid)).open()) as machine:
            _wait_for_state(machine, "running")
            machine.stop()
            assert machine.info().state == "stopped"
        qmp(monitor, "stop")
        with closing(parse_target(str(pid)).open()) as machine:
            _wait_for_state(machine, "paused (by QEMU)")
            machine.stop()  # and can be looked at
            assert machine.vcpus[0].paging() is not None
        with closing(parse_target(str(pid)).open()) as machine, socket.socket(socket.AF_UNIX) as it:
            it.connect(str(monitor))  # somebody else has the monitor
            assert it.recv(1)
            _wait_for_state(machine, "paused (by its VMM)")
        wait_for("the monitor is free", lambda: qmp(monitor, "cont") == {})
        with closing(parse_target(str(pid)).open()) as machine:
            _wait_for_state(machine, "running")


def test_our_own_vmm_and_a_signal() -> None:
    with own_vmm_guest("chain", 2) as pid, closing(KvmMachine.open(pid)) as machine:
        _wait_for_state(machine, "running")
        os.kill(pid, signal.SIGSTOP)
        _wait_for_state(machine, "stopped (its VMM, by a signal)")
        os.kill(pid, signal.SIGCONT)
        _wait_for_state(machine, "running")
