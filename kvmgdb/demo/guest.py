"""A stock Linux kernel in QEMU, with our init and its command channel."""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kvmgdb.demo.initramfs import build_initramfs
from kvmgdb.demo.kernel import Kernel
from kvmgdb.demo.process import end, start
from kvmgdb.errors import HostError, MachineError, TargetGoneError, TargetTimeoutError

BOOT_SECONDS = 60.0
ANSWER_SECONDS = 20.0
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

    ``pid`` is QEMU's; ``qmp_socket`` its monitor, for one client at a time;
    ``console_log`` holds all that the guest printed.
    """

    def __init__(self, kernel: Kernel, options: GuestOptions | None = None) -> None:
        self.options = options = options or GuestOptions()
        self._directory = tempfile.TemporaryDirectory(prefix="kvmgdb-guest-")
        directory = Path(self._directory.name)
        self.qmp_socket = directory / "qmp"
        self.console_log = directory / "console.log"
        self._qemu_log = directory / "qemu.log"
        self._pending = b""
        self._tag = 0
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(directory / "console"))
            listener.listen(1)
            # QEMU connects to us, so that not a byte is printed before we listen.
            with self._qemu_log.open("wb") as log:
                self._process = start(
                    self._command(kernel, options, directory / "console"), output=log
                )
            self._finalizer = weakref.finalize(self, _clean_up, self._process, self._directory)
            self._console = self._accept(listener)

    def _command(self, kernel: Kernel, options: GuestOptions, console: Path) -> list[str]:
        append = f"console=ttyS0 panic=-1 {options.append}"
        return [
            *("qemu-system-x86_64", "-name", options.name, "-nodefaults", "-no-user-config"),
            *("-display", "none", "-no-reboot"),
            *options.accelerator,
            *("-smp", str(options.vcpus), "-m", str(options.memory)),
            *("-kernel", str(kernel.vmlinuz), "-initrd", str(build_initramfs())),
            *("-append", append.strip()),
            *("-chardev", f"socket,id=console,path={console},logfile={self.console_log}"),
            *("-serial", "chardev:console"),
            *("-qmp", f"unix:{self.qmp_socket},server=on,wait=off"),
            *options.arguments,
        ]

    def _accept(self, listener: socket.socket) -> socket.socket:
        deadline = time.monotonic() + ANSWER_SECONDS
        listener.settimeout(0.1)
        while time.monotonic() < deadline:
            try:
                return listener.accept()[0]
            except TimeoutError:
                if self._process.poll() is not None:
                    break
        message = self._qemu_log.read_text(errors="replace").strip()
        self.close()
        raise HostError(f"QEMU did not start: {message or 'it printed nothing'}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the QEMU process is there."""
        return self._process.poll() is None

    def wait_ready(self, seconds: float = BOOT_SECONDS) -> None:
        """Waits until the guest's init has started its workers."""
        self._read_until(rb"kvmgdb-guest: ready\n", time.monotonic() + seconds)

    def progress(self, seconds: float = ANSWER_SECONDS) -> int:
        """What the guest's workers have done so far; grows while the guest runs.

        Raises TargetTimeoutError where the guest does not answer: a stopped one.
        """
        self._tag += 1
        return int(self._ask(f"progress {self._tag}", rb"kvmgdb-guest: progress (\d+)\n", seconds))

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

    def console_text(self) -> str:
        """All that the guest printed so far, for messages about it."""
        try:
            return self.console_log.read_text(errors="replace")
        except OSError:
            return ""

    def close(self) -> None:
        """Ends QEMU and removes the guest's files. Idempotent."""
        console = getattr(self, "_console", None)
        if console is not None:
            console.close()
        self._finalizer()

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


def _clean_up(
    process: subprocess.Popen[bytes], directory: tempfile.TemporaryDirectory[str]
) -> None:
    end(process)
    directory.cleanup()
