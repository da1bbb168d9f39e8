"""QEMU processes: which there are, what they are called, and where their monitor is."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmgdb.demo.process import end, start
from kvmgdb.errors import KvmgdbError, TargetGoneError, TargetNotFoundError, TargetTimeoutError
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.processes import find_vm, vm_processes
from kvmgdb.machine.qemu_process import (
    QemuProcess,
    _parse_options,
    connect_qmp,
    gdb_stub_address,
    parse_chardev_address,
    read_qemu_process,
)
from kvmgdb.machine.sockets import listening_sockets
from kvmgdb.machine.target import parse_target
from tests.support.polling import wait_for
from tests.support.qemu import Qemu, free_port
from tests.support.require import requires

pytestmark = requires("qemu")

BASE = ("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-S")


@contextmanager
def qemu(*arguments: str, directory: Path | None = None) -> Iterator[QemuProcess]:
    """A paused QEMU with nothing but ``arguments``, started in ``directory``."""
    here = os.getcwd()
    try:
        if directory is not None:
            os.chdir(directory)
        process = start([*BASE, "-accel", "tcg", "-m", "16", *arguments])
    finally:
        os.chdir(here)
    try:

        def found() -> QemuProcess | None:
            assert process.poll() is None, "QEMU did not start"
            return read_qemu_process(process.pid)

        running = wait_for("the process is QEMU", found)
        assert running is not None
        yield running
    finally:
        end(process)


def monitor_of(process: QemuProcess) -> str:
    """What the monitor that was found says the machine's name is."""

    def connected() -> str | None:
        try:
            qmp = connect_qmp(process)
        except (TargetNotFoundError, TargetGoneError):
            return None  # QEMU has not come so far yet
        name = str(qmp.execute("query-name").get("name", "none"))
        qmp.close()
        return name

    return str(wait_for("a monitor answers", connected))


def test_a_relative_path() -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        qemu(
            "-name", "rel", "-qmp", "unix:sock,server=on,wait=off", directory=Path(name)
        ) as process,
    ):
        assert monitor_of(process) == "rel"
        addresses = list(listening_sockets(process.pid).values())
        assert [a.path for a in addresses] == [f"/proc/{process.pid}/cwd/sock"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-qmp", "unix:{d}/qmp,server=on,wait=off"],
        ["-qmp-pretty", "unix:{d}/qmp,server=on,wait=off"],
        ["--qmp", "unix:{d}/qmp,server,nowait"],
        ["-qmp", "unix:{d}/with,,comma,server=on,wait=off"],
        ["-qmp", "tcp:127.0.0.1:{port},server=on,wait=off"],
        ["-chardev", "socket,id=m,path={d}/qmp,server=on,wait=off", "-mon", "m,mode=control"],
        [
            *("-chardev", "socket,path={d}/qmp,server=on,wait=off,id=m"),
            *("-mon", "chardev=m,mode=control,pretty=on"),
        ],
        [
            *("-chardev", "socket,id=m,host=127.0.0.1,port={port},server=on,wait=off"),
            *("-mon", "chardev=m,mode=control"),
        ],
        [
            *("-chardev", "socket,id=m,path=kvmgdb-{pid},abstract=on,server=on,wait=off"),
            *("-mon", "chardev=m,mode=control"),
        ],
        # A monitor for people is there, too.
        [
            *("-monitor", "unix:{d}/hmp,server=on,wait=off"),
            *("-qmp", "unix:{d}/qmp,server=on,wait=off"),
        ],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_where_the_monitor_is(tmp_path: Path, arguments: list[str]) -> None:
    values = {"d": str(tmp_path), "port": str(free_port()), "pid": str(os.getpid())}
    given = [argument.format(**values) for argument in arguments]
    with qemu("-name", "guest=a,,b c,debug-threads=on", *given) as process:
        assert process.name == "a,b c"
        assert monitor_of(process) == "a,b c"


def test_a_name_finds_the_machine(tmp_path: Path) -> None:
    name = f"kvmgdb-find-{os.getpid()}"
    socket = f"unix:{tmp_path}/qmp,server=on,wait=off"
    with qemu("-name", f"{name},debug-threads=on", "-smp", "2", "-qmp", socket) as process:
        assert find_vm(name).pid == process.pid
        assert process.pid in [found.pid for found in vm_processes()]
        assert (process.vcpus, process.memory, process.accelerator) == (2, 16 << 20, "tcg")
        monitor_of(process)
        for text in (name, str(process.pid), f"qmp:{tmp_path}/qmp"):
            machine = parse_target(text).open()
            assert machine.info().pid == process.pid
            assert len(machine.vcpus) == 2
            machine.close()
        with qemu("-name", name) as other:
            with pytest.raises(
                TargetNotFoundError, match="2 virtual machines have the name"
            ) as caught:
                find_vm(name)
            assert str(other.pid) in str(caught.value)
    with pytest.raises(TargetNotFoundError, match="no virtual machine has the name"):
        find_vm(name)


def test_a_monitor_for_people_only(tmp_path: Path) -> None:
    with qemu("-monitor", f"unix:{tmp_path}/hmp,server=on,wait=off") as process:
        wait_for("the socket is there", (tmp_path / "hmp").exists)
        with pytest.raises(TargetNotFoundError, match="listens on no QMP socket") as caught:
            connect_qmp(process)
        assert "-qmp unix:PATH" in caught.value.remedy


def test_no_monitor_at_all_but_a_stub() -> None:
    port = free_port()
    with qemu("-gdb", f"tcp:127.0.0.1:{port}") as process:
        assert gdb_stub_address(process) == SocketAddress(host="127.0.0.1", port=port)

        def opened() -> Machine | None:
            try:
                return parse_target(str(process.pid)).open()
            except TargetGoneError:
                return None

        machine = wait_for("the stub listens", opened)
        assert machine is not None
        assert len(machine.vcpus) == 1
        machine.close()


def test_a_qemu_that_a_signal_has_stopped() -> None:
    with Qemu("-accel", "tcg", "-S", "-m", "16M") as started:
        process = read_qemu_process(started.pid)
        assert process is not None
        started.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(TargetTimeoutError, match="is stopped, by a signal") as failure:
                connect_qmp(process)
        finally:
            started.process.send_signal(signal.SIGCONT)
        assert f"kill -CONT {started.pid}" in failure.value.remedy


def test_a_process_that_is_gone() -> None:
    with qemu("-name", "gone") as process:
        pass
    assert read_qemu_process(process.pid) is None
    with pytest.raises(TargetGoneError, match="has exited"):
        listening_sockets(process.pid)
    with pytest.raises(TargetNotFoundError, match="there is no process with PID"):
        parse_target(str(process.pid))
    with pytest.raises(KvmgdbError):
        connect_qmp(process)


def test_a_process_that_is_no_qemu() -> None:
    assert read_qemu_process(os.getpid()) is None
    assert read_qemu_process(1 << 22) is None


@pytest.mark.parametrize(
    ("arguments", "name", "vcpus", "memory"),
    [
        ([], "", 1, 128 << 20),
        (["-name", "x"], "x", 1, 128 << 20),
        (["-name", "debug-threads=on,guest=x"], "x", 1, 128 << 20),
        (["-name", "debug-threads=on"], "", 1, 128 << 20),
        (["-name", "a", "-name", "b"], "b", 1, 128 << 20),
        (["-smp", "4", "-m", "2G"], "", 4, 2 << 30),
        (["-smp", "cpus=3,maxcpus=8", "-m", "size=512M,slots=2,maxmem=4G"], "", 3, 512 << 20),
        (["-smp", "sockets=2,cores=3,threads=2", "-m", "1.5G"], "", 12, 3 << 29),
        (["-smp", "nonsense", "-m", "nonsense"], "", 1, 0),
        (["-S", "-name", "y"], "y", 1, 128 << 20),
    ],
)
def test_command_lines(arguments: list[str], name: str, vcpus: int, memory: int) -> None:
    words = tuple(arguments)
    process = QemuProcess(0, words, 0.0, _parse_options(words))
    assert (process.name, process.vcpus, process.memory) == (name, vcpus, memory)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp::1234", SocketAddress(host="127.0.0.1", port=1234)),
        ("tcp:0.0.0.0:1,server=on", SocketAddress(host="127.0.0.1", port=1)),
        ("disconnected:tcp:[::]:5,server=on", SocketAddress(host="::1", port=5)),
        ("unix:/a,,b,server=on", SocketAddress(path="/a,b")),
        ("disconnected:unix:/a/b,server=on", SocketAddress(path="/a/b")),
        ("stdio", None),
        ("tcp:nowhere", None),
        ("pty:/dev/pts/1", None),
        ("", None),
    ],
)
def test_addresses_as_qemu_writes_them(text: str, address: SocketAddress | None) -> None:
    assert parse_chardev_address(text) == address
