"""A stock Linux kernel in QEMU, with our init and its command channel."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kvmgdb.demo.initramfs import build_initramfs
from kvmgdb.demo.kernel import Kernel
from kvmgdb.demo.process import private_directory
from kvmgdb.demo.qemu import QemuProcess
from kvmgdb.errors import HostError, MachineError, TargetGoneError, TargetTimeoutError

BOOT_SECONDS = 180.0
ANSWER_SECONDS = 60.0
PREFIX = b"kvmgdb-guest: "

# The newest kernels fail under QEMU 7.2's TCG with cmpxchg16b; without 5-level
# paging a guest is what most hosts run.
TCG_CPU = "max,-cx16,-la57"
TCG = ("-accel", "tcg", "-cpu", TCG_CPU)


@dataclass(frozen=True)
class GuestOptions:
    """How a guest is started: ``memory`` in MiB, ``append`` after our own kernel
    command line, ``arguments`` after our own of QEMU."""

    name: str = "kvmgdb-demo"
    vcpus: int = 2
    memory: int = 256
    accelerator: Sequence[str] = TCG
    append: str = ""
    arguments: Sequence[str] = ()


class LinuxGuest:
    """A guest that runs from construction until :meth:`close`.

    ``console_log`` holds all that the guest printed. Raises HostError where
    QEMU does not start.
    """

    def __init__(self, kernel: Kernel, options: GuestOptions | None = None) -> None:
        self.options = options = options or GuestOptions()
        directory = private_directory("qemu")
        console = Path(directory.name) / "console"
        self.console_log = Path(directory.name) / "console.log"
        self._pending = b""
        self._tag = 0
        with socket.socket(socket.AF_UNIX) as listener:
            # QEMU connects to us, so that not a byte is printed before we listen.
            listener.bind(str(console))
            listener.listen(1)
            self.qemu = QemuProcess(
                [
                    *("-name", options.name, "-display", "none", "-no-reboot"),
                    *options.accelerator,
                    *("-smp", str(options.vcpus), "-m", str(options.memory)),
                    *("-kernel", str(kernel.vmlinuz), "-initrd", str(build_initramfs())),
                    *("-append", f"console=ttyS0 panic=-1 {options.append}".strip()),
                    *("-chardev", f"socket,id=console,path={console},logfile={self.console_log}"),
                    *("-serial", "chardev:console"),
                    *options.arguments,
                ],
                directory,
            )
            try:
                self._console = self._accept(listener)
            except BaseException:
                self.qemu.close()
                raise

    def _accept(self, listener: socket.socket) -> socket.socket:
        deadline = time.monotonic() + ANSWER_SECONDS
        listener.settimeout(0.1)
        while time.monotonic() < deadline and self.qemu.running:
            try:
                return listener.accept()[0]
            except TimeoutError:
                continue
        raise HostError(f"QEMU did not start: {self.qemu.printed()}")

    @property
    def pid(self) -> int:
        """The process ID of QEMU."""
        return self.qemu.pid

    def wait_ready(self, seconds: float = BOOT_SECONDS) -> None:
        """Waits until the guest's init has started its workers."""
        self._read_until(rb"kvmgdb-guest: ready\n", time.monotonic() + seconds)

    def progress(self, seconds: float = ANSWER_SECONDS) -> int:
        """What the guest's workers have done so far; grows while the guest runs.

        Raises TargetTimeoutError where the guest does not answer: a stopped one.
        """
        self._tag += 1
        return int(self._ask(f"progress {self._tag}", rb"kvmgdb-guest: progress (\d+)\n", seconds))

    def makes_progress(self, seconds: float = ANSWER_SECONDS) -> bool:
        """Whether the workers do something within ``seconds`` from now."""
        deadline = time.monotonic() + seconds
        try:
            before = self.progress(seconds)
            while time.monotonic() < deadline:
                if self.progress(seconds) > before:
                    return True
                time.sleep(0.01)
        except TargetTimeoutError:
            pass
        return False

    def symbol(self, name: str) -> int:
        """A kernel symbol's address (GVA), as the guest's /proc/kallsyms says.

        Raises MachineError where the guest has no such symbol.
        """
        pattern = rb"kvmgdb-guest: kallsyms " + re.escape(name.encode()) + rb"(.*)\n"
        answer = self._ask(f"kallsyms {name}", pattern).split()
        if not answer:
            raise MachineError(f"the guest's kernel has no symbol {name}")
        return int(answer[0], 16)

    def read_file(self, path: str, seconds: float = ANSWER_SECONDS) -> bytes:
        """A file of the guest, through its console. Raises MachineError."""
        deadline = time.monotonic() + seconds
        self._send(f"cat {path}", deadline)
        content, match = self._read_until(rb"\nkvmgdb-guest: end (-?\d+)\n", deadline)
        count = int(match[1])
        if count < 0:
            raise MachineError(f"the guest cannot read {path} (error {-count})")
        if count != len(content):
            raise MachineError(f"the guest sent {len(content)} bytes of {path}, not {count}")
        return content

    def load_module(self, path: str, seconds: float = ANSWER_SECONDS) -> None:
        """Loads a kernel module that lies at ``path`` in the guest. Raises MachineError."""
        self._do(f"insmod {path}", seconds)

    def unload_module(self, name: str, seconds: float = ANSWER_SECONDS) -> None:
        """Raises MachineError."""
        self._do(f"rmmod {name}", seconds)

    def _do(self, command: str, seconds: float) -> None:
        result = int(self._ask(command, rb"\nkvmgdb-guest: end (-?\d+)\n", seconds))
        if result < 0:
            raise MachineError(f"the guest cannot {command} (error {-result})")

    def console_text(self) -> str:
        """All that the guest printed so far, for messages about it."""
        try:
            return self.console_log.read_text(errors="replace")
        except OSError:
            return ""

    def close(self) -> None:
        """Ends QEMU and removes the guest's files. Idempotent."""
        self._console.close()
        self.qemu.close()

    def __enter__(self) -> LinuxGuest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, command: str, pattern: bytes, seconds: float = ANSWER_SECONDS) -> bytes:
        deadline = time.monotonic() + seconds
        self._send(command, deadline)
        return self._read_until(pattern, deadline)[1][1]

    def _send(self, command: str, deadline: float) -> None:
        if "\n" in command:
            raise ValueError("a command is one line")
        try:
            self._console.sendall(command.encode() + b"\n")
        except OSError:
            raise TargetGoneError("the guest's QEMU has exited") from None
        self._read_until(PREFIX + rb"> " + re.escape(command.encode()) + rb"\n", deadline)

    def _read_until(self, pattern: bytes, deadline: float) -> tuple[bytes, re.Match[bytes]]:
        """Reads on to the first match: what stood before it, and the match."""
        while True:
            match = re.search(pattern, self._pending)
            if match is not None:
                before = self._pending[: match.start()]
                self._pending = self._pending[match.end() :]
                return before, match
            left = deadline - time.monotonic()
            if left <= 0:
                raise TargetTimeoutError("the guest did not answer on its console in time")
            self._console.settimeout(left)
            try:
                data = self._console.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                data = b""
            if not data:
                last = self.console_text().strip().splitlines()[-3:]
                raise TargetGoneError(
                    f"the guest's QEMU has exited; it printed: {' / '.join(last)}"
                )
            self._pending += data
