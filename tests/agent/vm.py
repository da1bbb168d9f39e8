"""A VMM process that runs the test guest, and what the guest says of itself."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

COMPUTE, IO, HALT, INT3, STUCK, TRIPLE_FAULT = range(6)
RAM = 64 << 20
LOAD = 1 << 20
NOBODY = 65534  # an ordinary user
_SIGNATURE = b"kvmgdb test guest"


@dataclass(frozen=True)
class Program:
    guest: Path
    bios: Path
    vmm: Path
    symbols: dict[str, int]

    @classmethod
    def build(cls, source: Path, target: Path) -> Program:
        elf, image, bios = (target / name for name in ("guest.elf", "guest.bin", "bios.bin"))
        vmm = target / "vmm"
        linker = ["-nostdlib", "-static", "-Wl,--build-id=none", "-T", str(source / "guest.ld")]
        run(["gcc", *linker, "-o", str(elf), str(source / "guest.S")])
        run(["objcopy", "-O", "binary", "-R", ".bios", str(elf), str(image)])
        run(["objcopy", "-O", "binary", "-j", ".bios", str(elf), str(bios)])
        flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
        run(["gcc", *flags, "-o", str(vmm), str(source / "vmm.c")])
        table = run(["nm", str(elf)]).splitlines()
        symbols = {name: int(value, 16) for value, _, name in map(str.split, table)}
        return cls(image, bios, vmm, symbols)


def run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.005)


class Vm:
    """The process; it is killed by :meth:`close`."""

    def __init__(
        self, process: subprocess.Popen[bytes], program: Program, vcpus: int, runs: bool = True
    ) -> None:
        self.process = process
        self.pid = process.pid
        self.symbols = program.symbols
        self.vcpus = vcpus
        try:
            self.hva = self._find_ram()
            self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
            if runs:
                wait_until(lambda: all(self.counters()), "the guest to run")
        except BaseException:
            self.close()
            raise

    @classmethod
    def plain(
        cls, program: Program, vcpus: int, options: Sequence[str], user: int | None = None
    ) -> Vm:
        """``user``: who runs it; /dev/kvm is opened for it."""
        command = [str(program.vmm), str(program.guest), str(vcpus), *options]
        if user is None:
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
        else:
            kvm = os.open("/dev/kvm", os.O_RDWR)
            command.append(f"fd={kvm}")
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, pass_fds=[kvm], user=user, group=user
            )
            os.close(kvm)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return cls(process, program, vcpus, "slotless" not in options)

    @classmethod
    def qemu(cls, program: Program, vcpus: int, arguments: Sequence[str]) -> Vm:
        command = [
            *("qemu-system-x86_64", "-accel", "kvm", "-cpu", "kvm64,-cx16"),
            *("-display", "none", "-nodefaults", "-no-reboot", "-smp", str(vcpus)),
            *("-bios", str(program.bios), *arguments),
            *("-device", f"loader,file={program.guest},addr={LOAD:#x},force-raw=on"),
        ]
        if "-m" not in arguments:
            command += ["-m", "64M"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        return cls(process, program, vcpus)

    def _find_ram(self) -> int:
        found = 0

        def look() -> bool:
            nonlocal found
            assert self.process.poll() is None, "the VMM did not start"
            with suppress(FileNotFoundError), open(f"/proc/{self.pid}/maps") as maps:
                for line in maps:
                    start, end = (int(word, 16) for word in line.split()[0].split("-"))
                    if " rw-" in line and (found := self._guest_in(start, end)):
                        return True
            return False

        wait_until(look, "the guest's RAM")
        return found

    def _guest_in(self, start: int, end: int) -> int:
        """Where RAM begins in a mapping, or 0: the kernel merges neighbours."""
        with open(f"/proc/{self.pid}/mem", "rb", 0) as memory:
            for base in range(start, min(end - RAM, start + RAM) + 1, 4096):
                memory.seek(base + self.symbols["signature"])
                with suppress(OSError):
                    if memory.read(len(_SIGNATURE)) == _SIGNATURE:
                        return base
        return 0

    # ---- the guest ---------------------------------------------------------

    def read(self, gpa: int, size: int) -> bytes:
        data = os.pread(self._memory, size, self.hva + gpa)
        assert len(data) == size, f"the VMM has ended with status {self.process.wait(5)}"
        return data

    def quad(self, symbol: str, index: int = 0) -> int:
        return int(struct.unpack("<Q", self.read(self.symbols[symbol] + 8 * index, 8))[0])

    def counters(self) -> list[int]:
        return [self.quad("counter", i) for i in range(self.vcpus)]

    def set_mode(self, mode: int) -> None:
        os.pwrite(self._memory, struct.pack("<I", mode), self.hva + self.symbols["mode"])

    def assert_progress(self, seconds: float = 90.0) -> None:
        """Every vCPU goes on counting, and the VMM lives."""
        before = self.counters()
        wait_until(
            lambda: all(now > then for now, then in zip(self.counters(), before, strict=True)),
            f"progress of the guest (VMM status {self.process.poll()})",
            seconds,
        )
        assert self.process.poll() is None

    def assert_history(self) -> None:
        """Each vCPU did each of its steps exactly once, in order. The guest must
        be stopped: reading is not atomic."""
        for i in range(self.vcpus):
            counter, checksum, expected = self.quad("counter", i), self.quad("checksum", i), 0
            for value in range(1, counter + 1):
                expected = (expected * 31 + value) & 0xFFFFFFFFFFFFFFFF
            pc_between = (expected * 31 + counter + 1) & 0xFFFFFFFFFFFFFFFF
            previous = (expected - counter) * pow(31, -1, 1 << 64) & 0xFFFFFFFFFFFFFFFF
            assert checksum in (expected, previous, pc_between)

    # ---- the process -------------------------------------------------------

    def tids(self) -> list[int]:
        return [int(name) for name in os.listdir(f"/proc/{self.pid}/task")]

    def status(self, tid: int, name: str) -> str:
        with open(f"/proc/{self.pid}/task/{tid}/status") as file:
            for line in file:
                if line.startswith(name + ":"):
                    return line.split(":", 1)[1].strip()
        raise KeyError(name)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        with suppress(AttributeError):
            os.close(self._memory)
