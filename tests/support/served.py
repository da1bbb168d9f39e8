"""Fixtures: a Linux guest with a second monitor, and a server for it.

The second monitor is ours: what QEMU itself says of registers and memory is
compared with what a debugger is told.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmgdb.demo.guest import GuestOptions, LinuxGuest
from kvmgdb.demo.kernel import Kernel
from tests.support import background
from tests.support.polling import wait_for
from tests.support.qemu import qmp
from tests.support.server import KvmgdbServer


def has_stub(qmp: Callable[[str], Any]) -> bool:
    """Whether a QEMU has a GDB stub, by its monitor."""
    return any(chardev["label"] == "gdb" for chardev in qmp("query-chardev"))


class WatchedGuest:
    """A booted Linux guest (two vCPUs, KASLR) whose QEMU we can ask, too."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="kvmgdb-monitor-")
        self.monitor = Path(self._directory.name) / "qmp"
        self.name = name
        self._symbols: dict[str, int] = {}
        arguments = ("-qmp", f"unix:{self.monitor},server=on,wait=off")
        self.linux = LinuxGuest(kernel, GuestOptions(name=name, arguments=arguments))

    @property
    def pid(self) -> int:
        return self.linux.pid

    @property
    def qmp_socket(self) -> Path:
        """The monitor that a user would name."""
        return self.linux.qemu.qmp_socket

    def qmp(self, command: str, **arguments: Any) -> Any:
        return qmp(self.monitor, command, **arguments)

    def hmp(self, line: str, vcpu: int = 0) -> str:
        """What QEMU's human monitor prints, about one vCPU."""
        words = {"command-line": line, "cpu-index": vcpu}
        return str(self.qmp("human-monitor-command", **words)).replace("\r\n", "\n")

    def symbol(self, name: str) -> int:
        """A kernel symbol's address (GVA), from the guest's own /proc/kallsyms: the
        guest must run when it is asked for the first time."""
        if name not in self._symbols:
            assert self.status == "running", f"ask for {name} before the guest stops"
            self._symbols[name] = self.linux.symbol(name)
        return self._symbols[name]

    def register(self, name: str, vcpu: int = 0) -> int:
        """A register, from `info registers`: general ones, CR0 to CR4, EFER, RFL."""
        match = re.search(rf"\b{name} ?=([0-9a-f]+)", self.hmp("info registers", vcpu))
        assert match, name
        return int(match[1], 16)

    def memory(self, gva: int, length: int, vcpu: int = 0) -> bytes:
        """Guest-virtual memory, through QEMU's memsave."""
        signed = gva - (1 << 64) if gva >> 63 else gva  # QMP's integers are
        return self._save("memsave", signed, length, **{"cpu-index": vcpu})

    def physical_memory(self, gpa: int, length: int) -> bytes:
        """Guest-physical memory, through QEMU's pmemsave."""
        return self._save("pmemsave", gpa, length)

    def _save(self, command: str, address: int, length: int, **arguments: Any) -> bytes:
        path = Path(self._directory.name) / "memory"
        self.qmp(command, val=address, size=length, filename=str(path), **arguments)
        return path.read_bytes()

    @property
    def status(self) -> str:
        """QEMU's run state: "running", "paused", "debug" ..."""
        return str(self.qmp("query-status")["status"])

    @property
    def has_stub(self) -> bool:
        return has_stub(self.qmp)

    def wait_given_back(self, seconds: float = 60.0) -> None:
        """Waits until the guest runs and QEMU has no stub any more, then makes sure
        that the guest gets on: none of our breakpoints stops it."""
        wait_for("QEMU's stub is gone", lambda: not self.has_stub, seconds)
        wait_for("the guest runs", lambda: self.status == "running", seconds)
        assert self.linux.makes_progress(), "the guest makes no progress"
        assert self.status == "running"

    def close(self) -> None:
        self.linux.close()
        self._directory.cleanup()


class _Shared:
    """The shared guest; another takes its place when a test has broken it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._guest: WatchedGuest | None = None

    def get(self) -> WatchedGuest:
        if self._guest is None:
            self._guest = WatchedGuest(self._kernel, f"kvmgdb-watched-{os.getpid()}")
            self._guest.linux.wait_ready()
        return self._guest

    @property
    def pid(self) -> int | None:
        """The process ID of its QEMU, where it has been started."""
        return None if self._guest is None else self._guest.pid

    def drop(self) -> None:
        if self._guest is not None:
            self._guest.close()
            self._guest = None


@pytest.fixture(scope="session")
def _shared_watched_guest(linux_kernel: Kernel) -> Iterator[_Shared]:
    shared = _Shared(linux_kernel)
    background.share("_shared_watched_guest", lambda: shared.pid)
    yield shared
    shared.drop()


@pytest.fixture
def guest(_shared_watched_guest: _Shared) -> Iterator[WatchedGuest]:
    """A guest that tests share. Each must leave it running, without a stub and
    without breakpoints: that is checked after each."""
    guest = _shared_watched_guest.get()
    yield guest
    try:
        guest.wait_given_back()
    except BaseException:
        _shared_watched_guest.drop()
        raise


@pytest.fixture
def server(guest: WatchedGuest) -> Iterator[KvmgdbServer]:
    """`kvmgdb serve PID` for the shared guest, on a free port."""
    with KvmgdbServer(str(guest.pid)) as server:
        yield server
