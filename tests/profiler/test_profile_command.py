"""``kvmgdb profile``, as a user calls it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvmgdb.machine.sockets import listening_sockets
from kvmgdb.profiler import storage
from tests.kvm.guests import image, own_vmm_guest, qemu_guest
from tests.support.polling import wait_for
from tests.support.qemu import TCG, Qemu, free_port
from tests.support.require import requires

pytestmark = requires("kvm", "qemu", "cc")

SECONDS = 180.0


def _start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kvmgdb", "profile", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _run(*arguments: object) -> tuple[int, str]:
    """The exit status, and what was printed beside the file."""
    process = _start(*arguments)
    output, errors = process.communicate(timeout=SECONDS)
    assert output == ""
    assert "Traceback" not in errors
    return process.returncode, errors


@pytest.fixture(scope="module")
def pid() -> Iterator[int]:
    with qemu_guest("kvmgdb-profile", "split") as pid:
        yield pid


def test_recording_and_summary(pid: int, tmp_path: Path) -> None:
    output = tmp_path / "split.kvmprof"
    symbols = image("split").elf
    status, said = _run(pid, "--duration", 2, "--rate", 200, "-o", output, "--symbols", symbols)
    assert status == 0, said
    for words in ("0 errors, 0 broken stacks", "held per sample", "p99", "guest time lost"):
        assert words in said
    recording = storage.load(output)
    assert len(recording) > 0
    assert f"{len(recording)} samples written to {output}" in said
    assert recording.target == "kvmgdb-profile"
    assert recording.rate == 200
    assert {"split_a", "split_b", "split_c"} <= {frame.name for frame in recording.frames}
    assert max(recording.columns.time_ns) <= recording.duration_ns


def test_format_is_told_by_the_name(pid: int, tmp_path: Path) -> None:
    output = tmp_path / "split.folded"
    symbols = image("split").elf
    arguments = ("--duration", 1, "--symbols", symbols, "--by", "vcpu", "-o", output)
    assert _run(pid, *arguments)[0] == 0
    assert any(";split_a;split_leaf " in line for line in output.read_text().splitlines())


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--rate", "0"), 2, "0 samples a second cannot be taken"),
        (("--rate", "1000000"), 2, "samples a second cannot be taken"),
        (("--duration", "-1"), 2, "cannot take -1 seconds"),
        (("--all",), 2, "takes no TARGET"),
        (("--kernel-only", "--user"), 2, "leave nothing"),
        (("-o", "/nowhere/x.html"), 1, "cannot write /nowhere/x.html"),
        (("-o", "x.unknown"), 2, "does not say what format"),
        (("--vcpu", "2", "-o", "/dev/null", "--format", "folded"), 2, "there is no vCPU 2"),
        (("--symbols", "/etc/passwd"), 1, "/etc/passwd: the file is no 64-bit ELF file"),
        (("--symbols", "/nowhere"), 1, "/nowhere: No such file"),
        (("--off-cpu",), 1, "no Linux kernel"),
        (("--duration", "1", "--task", "nobody"), 1, "no sample is of that task or vCPU"),
    ],
)
def test_what_is_refused(
    pid: int, tmp_path: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    output = () if "-o" in arguments else ("-o", str(tmp_path / "x.html"))
    result, said = _run(pid, *output, *arguments)
    assert words in said
    assert result == status
    assert list(tmp_path.iterdir()) == []


def test_no_space_left(pid: int) -> None:
    status, said = _run(pid, "--duration", 1, "-o", "/dev/full", "--format", "folded")
    assert status == 1
    assert "cannot write /dev/full: No space left on device" in said


_FIRST_RECORD = 4096  # KVMGDB_RING_DATA of native/include/kvmgdb/sample.h


def _wait_recording(process: subprocess.Popen[str]) -> None:
    """Waits until the agent has taken a sample."""

    def taken() -> bool:
        assert process.poll() is None, process.communicate()
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            for entry in Path(f"/proc/{children.split()[0]}/fd").iterdir():
                if "kvmgdb-samples" in os.readlink(entry):
                    with entry.open("rb") as ring:
                        return any(os.pread(ring.fileno(), 64, _FIRST_RECORD))
        except (OSError, IndexError):
            pass
        return False

    wait_for("samples are being taken", taken, SECONDS)


def test_a_second_profiler_is_refused_and_ctrl_c_writes(pid: int, tmp_path: Path) -> None:
    output = tmp_path / "first.kvmprof"
    first = _start(pid, "-o", output)
    _wait_recording(first)
    status, said = _run(pid, "--duration", 1, "-o", tmp_path / "second.kvmprof")
    assert status == 1
    assert f"PID {first.pid}" in said
    assert "profile" in said
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=SECONDS)
    assert first.returncode == 0, said
    assert len(storage.load(output)) > 0


def _has_stub(pid: int) -> bool:
    """Whether somebody is connected to the stub of a QEMU, as kvmgdb starts it."""
    connections = listening_sockets(pid, connected=True).values()
    return any("kvmgdb-stub" in address.path for address in connections)


def test_a_second_profiler_of_a_guest_without_kvm(tmp_path: Path) -> None:
    """QEMU's monitor serves one: whoever comes second is told who that is."""
    elf = image("split").multiboot
    output = tmp_path / "first.kvmprof"
    with Qemu(*TCG, "-m", "64", "-kernel", str(elf), "-name", "kvmgdb-profile-tcg") as qemu:
        first = _start(qemu.pid, "-o", output)
        wait_for("it is being recorded", lambda: _has_stub(qemu.pid), SECONDS)
        time.sleep(1.0)
        status, said = _run(qemu.pid, "--duration", 1, "-o", tmp_path / "second.kvmprof")
        first.send_signal(signal.SIGINT)
        _, said_first = first.communicate(timeout=SECONDS)
    assert status == 1
    assert f"PID {first.pid}: {sys.executable} -m kvmgdb profile {qemu.pid}" in said
    assert first.returncode == 0, said_first
    assert len(storage.load(output)) > 0


def test_the_machine_ends_while_it_is_recorded(tmp_path: Path) -> None:
    output = tmp_path / "ended.kvmprof"
    with qemu_guest("kvmgdb-profile-ends", "split") as pid:
        process = _start(pid, "-o", output)
        _wait_recording(process)
        os.kill(pid, signal.SIGKILL)
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert "ended early: the virtual machine has ended" in said
    recording = storage.load(output)
    assert len(recording) > 0
    assert any("ended early" in remark for remark in recording.remarks)


def test_a_paused_machine_has_no_samples(tmp_path: Path) -> None:
    output = tmp_path / "paused.html"
    with Qemu(*TCG, "-m", "32M", "-S", "-name", "kvmgdb-profile-paused") as qemu:
        status, said = _run(qemu.pid, "--duration", 1, "-o", output)
    assert status == 1
    assert "there are no samples: the machine was paused all the time" in said
    assert not output.exists()


def test_idle_vcpus(tmp_path: Path) -> None:
    output = tmp_path / "idle.folded"
    with own_vmm_guest("halt") as pid:
        status, said = _run(pid, "--duration", 2, "--idle", "-o", output)
    assert status == 0, said
    assert "[idle]" in output.read_text()


def test_every_machine_is_a_root(pid: int, tmp_path: Path) -> None:
    """With and without KVM; whoever cannot be recorded does not keep us from the rest,
    and machines of one name are told apart."""
    output = tmp_path / "all.folded"
    elf = str(image("split").multiboot)
    port = free_port()
    guests = [
        Qemu(*TCG, "-m", "64", "-kernel", elf, "-name", "kvmgdb-tcg"),
        Qemu(*TCG, "-m", "64", "-kernel", elf, "-name", "kvmgdb-profile"),
        Qemu(*TCG, "-m", "64", "-name", "kvmgdb-taken", "-gdb", f"tcp:127.0.0.1:{port}"),
    ]
    with ExitStack() as stack:
        for guest in guests:
            stack.enter_context(guest)
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        symbols = image("split").elf
        arguments = ("--duration", 3, "--symbols", symbols, "-o", output)
        status, said = _run("--all", *arguments)
    assert status == 0, said
    assert "without kvmgdb-taken: another debugger is connected" in said
    stacks = [line.split(";") for line in output.read_text().splitlines()]
    first, second = f"kvmgdb-profile (PID {pid})", f"kvmgdb-profile (PID {guests[1].pid})"
    for root in (first, second, "kvmgdb-tcg"):
        assert root in said
        assert any(stack[0] == root and "split_a" in stack for stack in stacks), root
    assert "kvmgdb-taken" not in {stack[0] for stack in stacks}
