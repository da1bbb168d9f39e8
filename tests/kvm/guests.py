"""The freestanding guests under KVM, in VMMs that know nothing of a debugger."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kvmgdb.demo.process import end, start
from kvmgdb.machine.own_vmm import vmm_path
from tests.support.polling import wait_for

SOURCES = Path(__file__).resolve().parents[1] / "guests" / "freestanding"
BOOT_SECONDS = 180.0
QEMU = (
    *("qemu-system-x86_64", "-accel", "kvm", "-cpu", "kvm64,-cx16", "-m", "64"),
    *("-display", "none", "-nodefaults", "-smp", "2"),
)


@dataclass(frozen=True)
class Image:
    """A guest's kernel, as multiboot and as PVH ELF, and its symbols."""

    elf: Path
    multiboot: Path
    symbols: dict[str, int]


@cache
def image(name: str) -> Image:
    """Builds a guest of ``tests/guests/freestanding``."""
    subprocess.run(["make", "-s", "-C", str(SOURCES)], check=True, timeout=120)
    elf = SOURCES / "build" / f"{name}.elf"
    listing = subprocess.run(["nm", str(elf)], check=True, capture_output=True, text=True).stdout
    fields = (line.split() for line in listing.splitlines())
    symbols = {field[2]: int(field[0], 16) for field in fields if len(field) == 3}
    return Image(elf, elf.with_suffix(".mb"), symbols)


@contextmanager
def qemu_guest(
    name: str, guest: str, arguments: Sequence[str] = (), as_user: int | None = None
) -> Iterator[int]:
    """The PID of a QEMU under KVM without any monitor or stub, its guest booted.

    ``as_user``: the user ID that QEMU runs as, in a mount namespace where that
    user may open /dev/kvm.
    """
    directory = Path(tempfile.mkdtemp(prefix="kvmgdb-kvm-"))
    serial = directory / "serial"
    command = [*QEMU, *arguments, "-name", name, "-serial", f"file:{serial}"]
    command += ["-kernel", str(image(guest).multiboot)]
    if as_user is not None:
        shutil.copy(image(guest).multiboot, directory / "kernel")
        command[-1] = str(directory / "kernel")
        os.chmod(directory, 0o777)
        node = directory / "kvm"
        os.mknod(node, 0o020666, os.stat("/dev/kvm").st_rdev)
        os.chmod(node, 0o666)
        inner = (
            f'mount --bind {node} /dev/kvm && exec setpriv --reuid {as_user} --clear-groups "$@"'
        )
        command = ["unshare", "--mount", "sh", "-c", inner, "sh", *command]
    log = (directory / "log").open("wb")
    process = start(command, output=log)
    try:

        def booted() -> bool:
            assert process.poll() is None, (directory / "log").read_text()
            return serial.exists() and guest in serial.read_text(errors="replace")

        wait_for(f"the guest {guest} has booted", booted, BOOT_SECONDS)
        yield process.pid
    finally:
        end(process)
        log.close()
        shutil.rmtree(directory)


@contextmanager
def own_vmm_guest(guest: str, vcpus: int = 1) -> Iterator[int]:
    """The PID of our own VMM, its guest booted."""
    with tempfile.TemporaryFile() as output:
        command = [str(vmm_path()), "-m", "64M", "--cpus", str(vcpus), str(image(guest).elf)]
        process = start(command, output=output)
        try:

            def booted() -> bool:
                printed = os.pread(output.fileno(), 4096, 0)
                assert process.poll() is None, printed
                return f"{guest}: ".encode() in printed

            wait_for(f"the guest {guest} has booted", booted, BOOT_SECONDS)
            yield process.pid
            assert process.poll() is None, "the VMM has ended"
        finally:
            end(process)
