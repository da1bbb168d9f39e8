"""The Linux guest itself: that it is what other tests take it for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kvmgdb.demo.guest import LinuxGuest
from kvmgdb.errors import MachineError, TargetGoneError, TargetTimeoutError
from tests.guests.linux.fixtures import StartGuest
from tests.support.qemu import qmp

ROOT = Path(__file__).resolve().parents[3]


def test_boots_in_ten_seconds(start_linux_guest: StartGuest) -> None:
    """Of processor time: what else the machine does is not the guest's fault."""
    guest = start_linux_guest()
    used = Path(f"/proc/{guest.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    assert sum(map(int, used)) / os.sysconf("SC_CLK_TCK") < 10
    assert guest.makes_progress()


def test_two_vcpus_and_four_workers(linux_guest: LinuxGuest) -> None:
    assert linux_guest.read_file("/proc/cpuinfo").count(b"processor\t:") == 2
    names = {linux_guest.read_file(f"/proc/{pid}/comm").strip() for pid in _children(linux_guest)}
    assert names == {b"compute", b"syscalls", b"faults", b"pipes"}


def _children(guest: LinuxGuest) -> list[int]:
    return [int(pid) for pid in guest.read_file("/proc/1/task/1/children").split()]


def test_kernel_is_not_where_it_was_linked(linux_guest: LinuxGuest) -> None:
    text = linux_guest.symbol("_text")
    assert text % (2 << 20) == 0
    assert text != 0xFFFFFFFF81000000
    assert linux_guest.symbol("jiffies_64") > text


def test_symbols_of_later_lines(linux_guest: LinuxGuest) -> None:
    with pytest.raises(MachineError, match="no symbol jiffies_6"):
        linux_guest.symbol("jiffies_6")


def test_a_file_that_is_not_there(linux_guest: LinuxGuest) -> None:
    with pytest.raises(MachineError, match="cannot read /nowhere"):
        linux_guest.read_file("/nowhere")


def test_a_stopped_guest_does_not_answer_and_later_does(start_linux_guest: StartGuest) -> None:
    guest = start_linux_guest()
    before = guest.progress()
    qmp(guest.qemu.qmp_socket, "stop")
    with pytest.raises(TargetTimeoutError):
        guest.progress(seconds=1)
    assert not guest.makes_progress(seconds=1)
    qmp(guest.qemu.qmp_socket, "cont")
    assert guest.progress() > before
    assert guest.makes_progress()


def test_qemu_that_exits(start_linux_guest: StartGuest) -> None:
    guest = start_linux_guest()
    qmp(guest.qemu.qmp_socket, "quit")
    with pytest.raises(TargetGoneError, match="QEMU has exited"):
        guest.progress()


def test_close_leaves_nothing(start_linux_guest: StartGuest) -> None:
    guest = start_linux_guest()
    guest.close()
    guest.close()
    assert not guest.qemu.running
    assert not guest.qemu.directory.exists()


STARTER = """
import time
from kvmgdb.demo.guest import LinuxGuest
from kvmgdb.demo.kernel import fetch_kernel
guest = LinuxGuest(fetch_kernel())
print(guest.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.usefixtures("linux_kernel")
def test_qemu_dies_with_whoever_started_it() -> None:
    with (
        # Who is killed cannot remove its files: they go with this directory.
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen(
            [sys.executable, "-c", STARTER],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": directory},
            stdout=subprocess.PIPE,
            text=True,
        ) as starter,
    ):
        assert starter.stdout
        pid = int(starter.stdout.readline())
        assert b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()
        os.kill(starter.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
