"""Stock Linux under KVM, also on a host whose KVM interprets guest code.

Such a KVM lacks too many instructions to boot a kernel, but runs one that only
computes: the guest boots under TCG until its only program makes no system call
any more, and its state goes from there into a QEMU under KVM, by migration.
Where KVM boots an ordinary kernel, it does.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import socket
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from kvmgdb.cli.launch import kvm_unusable
from kvmgdb.demo.cache import cache_directory, locked
from kvmgdb.demo.initramfs import FLAGS, Entry, cpio
from kvmgdb.demo.kernel import Kernel
from kvmgdb.demo.process import end, private_directory, start
from tests.support.polling import wait_for

QEMU = "qemu-system-x86_64"
# Two QEMUs with other devices or processors could not pass a guest on.
MACHINE = (
    *("-machine", "pc-i440fx-7.2", "-cpu", "kvm64,-cx16", "-m", "256", "-smp", "2"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
)
# What the kernel would otherwise use of the processor it booted on, or complain
# about when time makes a jump.
APPEND = (
    "console=ttyS0 panic=-1 mitigations=off noxsave nowatchdog "
    "rcupdate.rcu_cpu_stall_suppress=1 no-kvmclock clocksource=jiffies tsc=unstable"
)
COUNTERS = 4  # init_compute.c: of itself and its three workers
BOOT_SECONDS = 180.0
MIGRATE_SECONDS = 60.0
# Timer interrupts take most of the time of a vCPU that is interpreted.
PROGRESS_SECONDS = 60.0
_MONITOR_SECONDS = 60.0
_SOURCE = Path(__file__).parent / "init_compute.c"


@dataclass(frozen=True)
class Facts:
    """What the guest said of itself: kernel symbols (GVA), the counters' GPA, and
    all that it printed."""

    symbols: dict[str, int]
    counters: int
    console: str

    @classmethod
    def parse(cls, console: str) -> Facts:
        symbols = re.findall(r"^compute: symbol ([0-9a-f]+) (\S+)\r?$", console, re.MULTILINE)
        counters = re.search(r"^compute: counters ([0-9a-f]+)\r?$", console, re.MULTILINE)
        assert counters, console
        addresses = {name: int(value, 16) for value, name in symbols}
        return cls(addresses, int(counters[1], 16), console)


class Qemu:
    """A QEMU with :data:`MACHINE`. Its monitor is a socket pair, which nobody but
    us can connect to."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._directory = private_directory("linux")
        self._work = Path(self._directory.name)
        ours, theirs = socket.socketpair()
        with theirs, (self._work / "log").open("wb") as log:
            monitor = f"socket,id=private,fd={theirs.fileno()}"
            self.process = start(
                [
                    *(QEMU, *MACHINE, "-serial", f"file:{self._work / 'serial'}"),
                    *("-chardev", monitor, "-mon", "chardev=private,mode=control"),
                    *arguments,
                ],
                output=log,
                pass_fds=[theirs.fileno()],
            )
        ours.settimeout(_MONITOR_SECONDS)
        self._socket = ours
        self._monitor = ours.makefile("rwb", 0)
        try:
            assert self._monitor.readline(), (self._work / "log").read_text()  # the greeting
            self.ask("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, command: str, **arguments: Any) -> Any:
        """One command of QMP; what QEMU returns."""
        request = {"execute": command, "arguments": arguments}
        with suppress(BrokenPipeError):  # then there is nothing to read either
            self._monitor.write(json.dumps(request).encode() + b"\n")
        while line := self._monitor.readline():
            answer = json.loads(line)
            if "event" in answer:
                continue
            assert "return" in answer, f"QEMU refuses {command}: {answer}"
            return answer["return"]
        printed = (self._work / "log").read_text() + self.console()[-2000:]
        raise AssertionError(f"QEMU has ended; it and the guest printed: {printed}")

    def hmp(self, line: str, vcpu: int = 0) -> str:
        """What QEMU's human monitor prints, about one vCPU."""
        words = {"command-line": line, "cpu-index": vcpu}
        return str(self.ask("human-monitor-command", **words))

    def console(self) -> str:
        path = self._work / "serial"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_computing(self) -> Facts:
        """Waits for a booted guest, until its programs only compute."""

        def ready() -> bool:
            console = self.console()
            assert self.process.poll() is None, (self._work / "log").read_text() + console
            assert "compute: failed" not in console, console
            return "compute: ready" in console

        wait_for("the Linux guest has booted", ready, BOOT_SECONDS)
        facts = Facts.parse(self.console())
        wait_for("init computes", lambda: self.counters(facts)[0], PROGRESS_SECONDS)
        return facts

    def counters(self, facts: Facts) -> tuple[int, ...]:
        data = self._save("pmemsave", facts.counters, 8 * COUNTERS)
        return struct.unpack(f"<{COUNTERS}Q", data)

    def memory(self, gva: int, length: int) -> bytes:
        """Guest-virtual memory, as vCPU 0 sees it."""
        signed = gva - (1 << 64) if gva >> 63 else gva  # QMP's integers are
        return self._save("memsave", signed, length, **{"cpu-index": 0})

    def _save(self, command: str, address: int, length: int, **arguments: Any) -> bytes:
        path = self._work / "memory"
        self.ask(command, val=address, size=length, filename=str(path), **arguments)
        return path.read_bytes()

    def close(self) -> None:
        self._monitor.close()
        self._socket.close()
        end(self.process)
        self._directory.cleanup()

    def __enter__(self) -> Qemu:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class LinuxUnderKvm:
    """The guest, running, and QEMU's own word about it.

    QEMU's monitor waits for the vCPUs in :meth:`memory` and :meth:`registers`:
    ask it while no debugger holds them.
    """

    def __init__(self, qemu: Qemu, facts: Facts) -> None:
        self.qemu = qemu
        self.facts = facts
        self.pid = qemu.pid

    def symbol(self, name: str) -> int:
        return self.facts.symbols[name]

    def counters(self) -> tuple[int, ...]:
        return self.qemu.counters(self.facts)

    def memory(self, gva: int, length: int) -> bytes:
        return self.qemu.memory(gva, length)

    def register(self, name: str, vcpu: int = 0) -> int:
        """A register of `info registers`, as RIP, CR3, EFER, DR7."""
        match = re.search(rf"\b{name} ?=([0-9a-f]+)", self.qemu.hmp("info registers", vcpu))
        assert match, name
        return int(match[1], 16)

    def assert_progress(self) -> None:
        """Every process of the guest counts on: interrupts and the scheduler work."""
        before = self.counters()

        def all_grew() -> bool:
            assert self.qemu.ask("query-status")["status"] == "running"
            return all(now > then for now, then in zip(self.counters(), before, strict=True))

        wait_for("every process of the guest computes", all_grew, PROGRESS_SECONDS)


@contextmanager
def linux_under_kvm(kernel: Kernel, arguments: Sequence[str] = ()) -> Iterator[LinuxUnderKvm]:
    """The guest under KVM, whichever way this host's KVM allows. ``arguments`` are for
    its QEMU."""
    with ExitStack() as stack:
        if kvm_unusable():
            state, facts = _state(kernel)
            incoming = f"exec:cat {shlex.quote(str(state))}"
            loading = ("-accel", "kvm", "-incoming", incoming, "-S")
            qemu = stack.enter_context(Qemu((*loading, *arguments)))
            wait_for("the state is loaded", lambda: _status(qemu) == "paused", MIGRATE_SECONDS)
            qemu.ask("cont")
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            initrd = directory / "initrd"
            initrd.write_bytes(_initramfs())
            booting = ("-accel", "kvm", *_boot(kernel, initrd))
            qemu = stack.enter_context(Qemu((*booting, *arguments)))
            facts = qemu.wait_computing()
        guest = LinuxUnderKvm(qemu, facts)
        guest.assert_progress()
        yield guest


def _status(qemu: Qemu) -> str:
    assert qemu.process.poll() is None, "QEMU has ended"
    return str(qemu.ask("query-status")["status"])


def _boot(kernel: Kernel, initrd: Path) -> tuple[str, ...]:
    return ("-kernel", str(kernel.vmlinuz), "-initrd", str(initrd), "-append", APPEND)


def _state(kernel: Kernel) -> tuple[Path, Facts]:
    """The state of a guest that computes, made once per kernel, program, machine
    and QEMU; those that are not asked for any more are removed."""
    initramfs = _initramfs()
    version = subprocess.run([QEMU, "--version"], check=True, capture_output=True).stdout
    digest = hashlib.sha256()
    words = " ".join((*MACHINE, APPEND)).encode()
    for part in (kernel.vmlinuz.read_bytes(), initramfs, words, version):
        digest.update(hashlib.sha256(part).digest())
    cache = cache_directory("adopted")
    directory = cache / digest.hexdigest()[:16]
    with locked(cache):
        if not directory.is_dir():
            with tempfile.TemporaryDirectory(prefix=".boot-", dir=cache) as work:
                fresh = Path(work) / "state"
                fresh.mkdir()
                _make_state(kernel, initramfs, fresh)
                for old in cache.glob(f"*/{_MEMORY}"):
                    old.unlink()
                    (old.parent / _CONSOLE).unlink()
                    old.parent.rmdir()
                fresh.rename(directory)
    return directory / _MEMORY, Facts.parse((directory / _CONSOLE).read_text())


_MEMORY, _CONSOLE = "memory", "console"


def _make_state(kernel: Kernel, initramfs: bytes, directory: Path) -> None:
    initrd = directory / "initrd"
    initrd.write_bytes(initramfs)
    with Qemu(("-accel", "tcg", *_boot(kernel, initrd))) as qemu:
        qemu.wait_computing()
        qemu.ask("stop")
        qemu.ask("migrate", uri=f"exec:cat > {shlex.quote(str(directory / _MEMORY))}")

        def migrated() -> bool:
            status = qemu.ask("query-migrate")["status"]
            assert status != "failed"
            return bool(status == "completed")

        wait_for("the guest's state is saved", migrated, MIGRATE_SECONDS)
        (directory / _CONSOLE).write_text(qemu.console())
    initrd.unlink()


def _initramfs() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "init"
        # Debug information would name the checkout, and so another state for each.
        command = ["gcc", *FLAGS, "-g0", "-o", str(program), _SOURCE.name]
        subprocess.run(command, check=True, cwd=_SOURCE.parent, timeout=60)
        return cpio(
            [
                Entry("dev", stat.S_IFDIR | 0o755),
                Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
                Entry("init", stat.S_IFREG | 0o755, program.read_bytes()),
            ]
        )
