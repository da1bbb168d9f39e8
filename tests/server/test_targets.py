"""Every way to name a machine and every way to reach the server."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.gdb import GdbSession, gdb_batch
from tests.support.polling import wait_for
from tests.support.qemu import TCG, Qemu, free_port
from tests.support.require import demand, requires_qemu
from tests.support.rsp import RawClient
from tests.support.served import WatchedGuest
from tests.support.server import KVMGDB, ROOT, KvmgdbServer, kvmgdb

pytestmark = requires_qemu


def test_list(guest: WatchedGuest) -> None:
    done = kvmgdb("list")
    assert done.returncode == 0
    assert re.search(r"^ *PID +VMM +NAME", done.stdout, re.MULTILINE)
    line = re.search(rf"^ *{guest.pid} .*$", done.stdout, re.MULTILINE)
    assert line, done.stdout
    assert re.search(rf"QEMU +{guest.name} +2 +256 MiB +tcg +0:\d\d:\d\d +yes", line[0])


def test_list_as_json(guest: WatchedGuest) -> None:
    done = kvmgdb("list", "--json")
    row = next(row for row in json.loads(done.stdout) if row["pid"] == guest.pid)
    assert row.pop("uptime") in range(3600)
    assert row == {
        "pid": guest.pid,
        "vmm": "QEMU",
        "name": guest.name,
        "vcpus": 2,
        "memory": 256 << 20,
        "accelerator": "tcg",
        "missing": "",
    }


@pytest.mark.parametrize("target", ["{guest.pid}", "{guest.name}", "qmp:{guest.qmp_socket}"])
def test_by_pid_name_and_monitor(guest: WatchedGuest, target: str) -> None:
    with KvmgdbServer(target.format(guest=guest)) as server:
        server.wait_printed(rf"QEMU {guest.name} \(PID {guest.pid}\): 2 vCPUs, 256 MiB, tcg")
        with RawClient(server.address) as client:
            assert client.request(b"qfThreadInfo") == b"m1,2"
            assert f"pid          {guest.pid}" in client.monitor("info")


_ALONE = f"""
qemu-system-x86_64 -nodefaults -display none -accel tcg -m 32M -name alone \\
    -qmp unix:$1,server=on,wait=off &
while ! [ -S "$1" ]; do sleep 0.02; done
exec {" ".join(KVMGDB)} serve --listen "unix:$2"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a PID namespace, which only root can")
def test_the_only_machine(tmp_path: Path) -> None:
    """In a PID namespace of its own a machine is the only one, whatever else runs."""
    with subprocess.Popen(
        [
            *("unshare", "--pid", "--mount-proc", "--fork", "--kill-child", "--"),
            *("sh", "-c", _ALONE, "sh", str(tmp_path / "qmp"), str(tmp_path / "gdb")),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for("it serves", (tmp_path / "gdb").exists)
            with RawClient(str(tmp_path / "gdb")) as client:
                assert client.request(b"?").startswith(b"T05")
                assert re.search(r"^machine +alone$", client.monitor("info"), re.MULTILINE)
                client.monitor("quit")
            assert process.wait(60) == 0
        finally:
            process.kill()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_any_stub(gdb: GdbSession) -> None:
    """A QEMU of which only the stub is known: slower, and with less to tell."""
    port = free_port()
    with (
        Qemu(*TCG, "-m", "32M", "-gdb", f"tcp:127.0.0.1:{port}", "-S") as qemu,
        KvmgdbServer(f"rsp:127.0.0.1:{port}") as server,
    ):
        rom = re.findall(r"0x\w\w\b", qemu.hmp("xp/8xb 0xfffffff0"))
        gdb.connect(server.address)
        assert gdb.integer("$rip") == 0xFFF0
        assert re.findall(r"0x\w\w\b", gdb.cli("x/8xb 0xfffffff0")) == rom
        gdb.cli("stepi")
        gdb.wait_stop()
        assert gdb.integer("$rip") == 0xE05B
        gdb.resume()
        wait_for("it runs", lambda: qemu.qmp("query-status")["running"])
        gdb.interrupt()
        gdb.cli("detach")
        wait_for("it runs", lambda: qemu.qmp("query-status")["running"])
        # And again, through the same server.
        gdb.connect(server.address)
        gdb.cli("detach")


def test_stub_that_qemu_had_already_stays(gdb_path: str) -> None:
    port = free_port()
    with (
        Qemu(*TCG, "-m", "32M", "-gdb", f"tcp:127.0.0.1:{port}") as qemu,
        KvmgdbServer(str(qemu.pid)) as server,
    ):
        output = gdb_batch(gdb_path, f"target remote {server.address}", "info threads", "detach")
        assert "vCPU 0" in output.stdout
        wait_for("it runs", lambda: qemu.qmp("query-status")["running"])
        assert [c["label"] for c in qemu.qmp("query-chardev")].count("gdb") == 1
        output = gdb_batch(gdb_path, f"target remote 127.0.0.1:{port}", "info threads", "detach")
        assert "Thread 1" in output.stdout


def test_unix_socket(gdb_path: str, guest: WatchedGuest, tmp_path: Path) -> None:
    path = tmp_path / "gdb"
    with KvmgdbServer(str(guest.pid), listen=f"unix:{path}") as server:
        assert server.address == str(path)
        output = gdb_batch(gdb_path, f"target remote {path}", "info threads", "detach")
        assert output.stdout.count('"vCPU') == 2, output.text
    assert not path.exists()


def test_standard_input_and_output(gdb_path: str, guest: WatchedGuest) -> None:
    command = " ".join([*KVMGDB, "serve", str(guest.pid), "--listen", "-"])
    output = gdb_batch(
        gdb_path, f"cd {ROOT}", f"target remote | {command}", "info threads", "stepi", "detach"
    )
    assert output.stdout.count('"vCPU') == 2, output.text
    assert "Traceback" not in output.text
    guest.wait_given_back()


def test_gdb_started_for_the_user(guest: WatchedGuest) -> None:
    demand(["gdb"])
    done = subprocess.run(
        [
            *(*KVMGDB, "gdb", str(guest.pid), "--", "-nx", "-batch"),
            *("-ex", "info threads", "-ex", "kvm info", "-ex", "kvm idt 14"),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"vCPU') == 2, done.stdout + done.stderr
    assert re.search(rf"^pid +{guest.pid}$", done.stdout, re.MULTILINE)
    assert re.search(r"^ 14  0xffffffff", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stderr
    guest.wait_given_back()
