"""A running ``kvmgdb-vmm``: its control socket, its output, its guest's memory."""

from __future__ import annotations

import functools
import json
import os
import select
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from kvmgdb.demo.process import end, private_directory

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "native" / "vmm" / "build" / "asan" / "kvmgdb-vmm"
GUESTS = ROOT / "tests" / "guests" / "freestanding" / "build"

# Generous: the machine may emulate, and other tests run beside this one.
SECONDS = 90.0


@functools.cache
def symbols(image: Path) -> dict[str, int]:
    """Names and addresses of an ELF file, as ``nm`` prints them."""
    output = subprocess.run(["nm", image], capture_output=True, check=True, text=True).stdout
    lines = (line.split() for line in output.splitlines())
    return {words[2]: int(words[0], 16) for words in lines if len(words) == 3}


class Vmm:
    """``kvmgdb-vmm ARGUMENTS --control SOCKET``; standard output is kept in ``output``.

    The machine is there when the constructor returns. ``stdin`` is what Popen
    takes; without it standard input is /dev/null.
    """

    def __init__(self, *arguments: str | Path, stdin: int = subprocess.DEVNULL) -> None:
        self._directory = private_directory("vmm")
        self.socket = Path(self._directory.name) / "control"
        self.output = b""
        self.errors = b""
        self.process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "--", PROGRAM),
                *(str(argument) for argument in arguments),
                *("--control", self.socket),
            ],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True)
            for name in ("stdout", "stderr")
        ]
        for reader in self._readers:
            reader.start()
        try:
            self.state()
        except BaseException:
            self.__exit__()
            raise

    def _read(self, name: str) -> None:
        stream = getattr(self.process, name)
        while data := os.read(stream.fileno(), 65536):
            if name == "stdout":
                self.output += data
            else:
                self.errors += data

    def __enter__(self) -> Vmm:
        return self

    def __exit__(self, *exception: object) -> None:
        end(self.process)
        for reader in self._readers:
            reader.join(SECONDS)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        self._directory.cleanup()

    def connect(self) -> Control:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                return Control(self.socket)
            except OSError:
                if self.process.poll() is not None:
                    raise AssertionError(f"it has ended: {self.errors.decode()}") from None
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def command(self, word: str) -> dict[str, Any]:
        """One command on a connection of its own; its answer."""
        with self.connect() as control:
            return control.command(word)

    def state(self) -> str:
        return str(self.command("status")["state"])

    def wait_state(self, state: str) -> dict[str, Any]:
        """The status once the machine is in ``state``."""
        deadline = time.monotonic() + SECONDS
        while (status := self.command("status"))["state"] != state:
            assert time.monotonic() < deadline, f"never {state}: {status}"
            time.sleep(0.02)
        return status

    def wait_output(self, text: bytes) -> None:
        deadline = time.monotonic() + SECONDS
        while text not in self.output:
            assert time.monotonic() < deadline, f"no {text!r} in {self.output!r}"
            time.sleep(0.02)

    def wait_end(self) -> int:
        """The exit status; all output has been read then."""
        status = self.process.wait(SECONDS)
        for reader in self._readers:
            reader.join(SECONDS)
        return status

    @property
    def pid(self) -> int:
        """Of the VMM itself: setpriv has become it."""
        return self.process.pid

    def memory(self, gpa: int, size: int) -> bytes:
        """Guest-physical memory below 3 GiB, from the memfd behind it."""
        directory = Path(f"/proc/{self.pid}/fd")
        for entry in directory.iterdir():
            if os.readlink(entry).startswith("/memfd:kvmgdb-ram"):
                descriptor = os.open(entry, os.O_RDONLY)
                try:
                    return os.pread(descriptor, size, gpa)
                finally:
                    os.close(descriptor)
        raise AssertionError("the VMM has no guest memory")

    def value(self, image: Path, symbol: str, index: int = 0, size: int = 8) -> int:
        """An unsigned integer of a guest of tests/guests/freestanding."""
        address = symbols(image)[symbol] + index * size
        return int.from_bytes(self.memory(address, size), "little")

    def wait_progress(
        self, image: Path, cpu: int = 0, steps: int = 3, symbol: str = "progress"
    ) -> None:
        """Until the guest's counter of that vCPU has grown by ``steps``."""
        first = self.value(image, symbol, cpu)
        deadline = time.monotonic() + SECONDS
        while (now := self.value(image, symbol, cpu)) < first + steps:
            assert time.monotonic() < deadline, f"{symbol}[{cpu}] stands still: {first}, {now}"
            time.sleep(0.02)


class Control:
    """A connection to the control socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(SECONDS)
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._stream = self._socket.makefile("rwb")

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._stream.write(data)
        self._stream.flush()

    def line(self) -> dict[str, Any]:
        """The next line: an answer or an event. Empty when the connection is closed."""
        line = self._stream.readline()
        return dict(json.loads(line)) if line else {}

    def command(self, word: str) -> dict[str, Any]:
        """Sends a command; its answer, with events in between passed over."""
        self.send(word.encode() + b"\n")
        while "event" in (answer := self.line()):
            pass
        return answer

    def wait_event(self, state: str) -> dict[str, Any]:
        while (event := self.line()).get("state") != state:
            assert event, f"closed before {state}"
        return event

    def readable(self, seconds: float) -> bool:
        return bool(select.select([self._socket], [], [], seconds)[0])


def run(*arguments: str | Path, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    """``kvmgdb-vmm ARGUMENTS`` to its end, without input or control socket."""
    return subprocess.run(
        ["setpriv", "--pdeathsig", "KILL", "--", PROGRAM, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
