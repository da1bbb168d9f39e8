"""The guest's userland: one static program in an initramfs, built on the host.

The archive is cpio's "newc" format as the kernel reads it
(Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from kvmgdb.demo.cache import cache_directory, locked
from kvmgdb.errors import HostError

COMPILE_SECONDS = 60
FLAGS = (
    "-std=gnu11",
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-pie",
    "-no-pie",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-tree-loop-distribute-patterns",
    # Neither an emulating KVM nor a guest without SSE stops this program.
    "-mgeneral-regs-only",
    # The program is the same whatever directory it is built in.
    "-Wl,--build-id=none",
)


@dataclass(frozen=True)
class Entry:
    """One file of an archive: ``mode`` with the type bits of stat(2); ``device`` is
    (major, minor) of a device node."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(entries: Iterable[Entry]) -> bytes:
    """A cpio archive in "newc" format; owner 0:0, time 0."""
    archive = bytearray()
    for inode, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.path.encode() + b"\0"
        fields = (
            inode,
            entry.mode,
            0,  # uid
            0,  # gid
            2 if stat.S_ISDIR(entry.mode) else 1,
            0,  # mtime
            len(entry.data),
            0,  # device that holds the file
            0,
            *entry.device,
            len(name),
            0,  # checksum: none in "070701"
        )
        archive += b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (name, entry.data):
            archive += part
            archive += bytes(-len(archive) % 4)
    return bytes(archive)


def build_initramfs() -> Path:
    """The initramfs with the guest's init, built once per source and compiler flags.

    Raises HostError where there is no C compiler, or it fails.
    """
    source = resources.files("kvmgdb.demo").joinpath("init.c").read_bytes()
    digest = hashlib.sha256(source + b"\0" + " ".join(FLAGS).encode()).hexdigest()[:16]
    cache = cache_directory("guest")
    image = cache / f"initramfs-{digest}.cpio"
    if image.is_file():
        return image
    with locked(cache), tempfile.TemporaryDirectory(prefix=".build-", dir=cache) as work:
        program = _compile(source, Path(work))
        archive = cpio(
            [
                Entry("dev", stat.S_IFDIR | 0o755),
                Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
                Entry("init", stat.S_IFREG | 0o755, program.read_bytes()),
            ]
        )
        fresh = Path(work) / "initramfs"
        fresh.write_bytes(archive)
        fresh.rename(image)
    return image


def _compile(source: bytes, work: Path) -> Path:
    compiler = shutil.which(os.environ.get("CC", "")) or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise HostError(
            "the guest's program must be compiled, and there is no C compiler",
            remedy="install gcc and libc6-dev",
        )
    (work / "init.c").write_bytes(source)
    try:
        result = subprocess.run(
            [compiler, *FLAGS, "-o", "init", "init.c"],
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMPILE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise HostError(f"{compiler} did not end within {COMPILE_SECONDS} s") from None
    if result.returncode != 0:
        lines = result.stderr.decode(errors="replace").splitlines()
        raise HostError(
            f"{compiler} could not compile the guest's program: "
            + next((line for line in lines if "error" in line), "it gave no reason"),
            remedy="install gcc and libc6-dev (the kernel headers for user space)",
        )
    return work / "init"
