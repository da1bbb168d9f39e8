"""The GDB and QEMU helpers, against QEMU's own stub."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gdb import GdbError, GdbSession, gdb_batch
from tests.support.qemu import MEMORY_BACKENDS, TCG, Qemu, free_port, memory_arguments
from tests.support.require import requires_qemu

pytestmark = requires_qemu


@pytest.fixture
def stub() -> Iterator[str]:
    """The address of a stub whose machine stands on its first instruction."""
    port = free_port()
    with Qemu(*TCG, *memory_arguments(32), "-S", "-gdb", f"tcp:127.0.0.1:{port}"):
        yield f"127.0.0.1:{port}"


def test_batch(gdb_path: str, stub: str) -> None:
    output = gdb_batch(gdb_path, f"target remote {stub}", "info threads", "print $rip")
    assert "Thread 1" in output.stdout
    assert "$1 = (void (*)()) 0xfff0" in output.stdout
    assert output.status == 0


def test_batch_keeps_errors(gdb_path: str) -> None:
    output = gdb_batch(gdb_path, f"target remote 127.0.0.1:{free_port()}")
    assert "Connection refused" in output.stderr


def test_session(gdb: GdbSession, stub: str) -> None:
    gdb.connect(stub)
    assert gdb.integer("$rip") == 0xFFF0
    assert "rip" in gdb.cli("info registers rip")
    assert gdb.run_to_stop("-exec-step-instruction")["reason"] == "end-stepping-range"
    gdb.resume()
    assert gdb.interrupt()["signal-name"] == "SIGINT"


def test_session_tells_errors(gdb: GdbSession) -> None:
    with pytest.raises(GdbError, match="No symbol table is loaded"):
        gdb.cli("print nothing_like_this")


def test_session_that_ends(gdb: GdbSession) -> None:
    gdb.kill()
    with pytest.raises(AssertionError, match="GDB exited"):
        gdb.mi("-gdb-version")


@pytest.mark.parametrize("backend", MEMORY_BACKENDS)
def test_memory_backends(backend: str) -> None:
    with Qemu(*TCG, *memory_arguments(32, backend), "-S") as qemu:
        assert qemu.qmp("query-memory-size-summary") == {
            "base-memory": 32 << 20,
            "plugged-memory": 0,
        }
        assert qemu.hmp("info memory_size_summary").startswith("base memory: 33554432")


def test_qemu_says_why_it_does_not_start() -> None:
    with pytest.raises(AssertionError, match="unsupported machine type"):
        Qemu("-machine", "no-such-machine")
