"""A Linux guest that has said what it knows of itself before its init ran.

``guests/probe.c`` runs as the kernel's first program and writes the kernel's
own files to QEMU's debug console, which takes megabytes in a second where a
serial line takes minutes.
"""

from __future__ import annotations

import lzma
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvmgdb.demo.guest import GuestOptions, LinuxGuest
from kvmgdb.demo.initramfs import FLAGS, Entry, build_initramfs, cpio
from kvmgdb.demo.kernel import Kernel

_SOURCE = Path(__file__).parent / "guests" / "probe.c"
# Small modules that every Debian kernel has, each after what it depends on.
MODULES = ("kernel/lib/crc7.ko", "kernel/drivers/block/loop.ko", "kernel/drivers/net/dummy.ko")


@dataclass(frozen=True)
class ProcessFiles:
    """``/proc/PID/stat`` and ``/proc/PID/stack`` of a task."""

    stat: str
    stack: tuple[str, ...]


class ProbedGuest:
    """A booted guest, and ``files``: the kernel's own words, by path."""

    def __init__(self, kernel: Kernel, options: GuestOptions) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="kvmgdb-probed-")
        work = Path(self._directory.name)
        initrd, output = work / "initrd", work / "output"
        initrd.write_bytes(build_initramfs().read_bytes() + _archive(kernel, work))
        arguments = ("-initrd", str(initrd), "-debugcon", f"file:{output}")
        options = replace(
            options,
            append=f"rdinit=/probe {options.append}".strip(),
            arguments=(*options.arguments, *arguments),
        )
        self.kernel = kernel
        self.options = options
        try:
            self.linux = LinuxGuest(kernel, options)
        except BaseException:
            self._directory.cleanup()
            raise
        try:
            self.linux.wait_ready(300)
            self.files = _parse(output.read_bytes())
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process ID of QEMU."""
        return self.linux.pid

    def text(self, path: str) -> str:
        return self.files[path].decode(errors="surrogateescape")

    def processes(self) -> dict[int, ProcessFiles]:
        """What the guest said of each process, by PID."""
        found = {}
        for path in self.files:
            words = path.split("/")
            if words[-1] != "stat" or not self.files[path]:
                continue
            stack = self.text(path.replace("stat", "stack")).splitlines()
            found[int(words[2])] = ProcessFiles(self.text(path), tuple(stack))
        return found

    def close(self) -> None:
        if hasattr(self, "linux"):
            self.linux.close()
        self._directory.cleanup()


def _parse(output: bytes) -> dict[str, bytes]:
    files = {}
    at = 0
    while not output.startswith(b"end\n", at):
        end = output.index(b"\n", at)
        word, path, size = output[at:end].decode().split()
        assert word == "file"
        at = end + 1 + int(size)
        files[path] = output[end + 1 : at]
    return files


def _archive(kernel: Kernel, work: Path) -> bytes:
    program = _compile(work)
    entries = [Entry("probe", stat.S_IFREG | 0o755, program.read_bytes())]
    entries.append(Entry("modules", stat.S_IFDIR | 0o755))
    for index, content in enumerate(module_files(kernel, MODULES)):
        entries.append(Entry(f"modules/{index}", stat.S_IFREG | 0o644, content))
    return cpio(entries)


def module_files(kernel: Kernel, names: Sequence[str]) -> list[bytes]:
    """The modules that this kernel has, ready to be loaded."""
    candidates = (kernel.modules / f"{name}{suffix}" for name in names for suffix in ("", ".xz"))
    return [
        lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        for path in candidates
        if path.is_file()
    ]


def _compile(work: Path) -> Path:
    program = work / "probe"
    subprocess.run(
        ["gcc", *FLAGS, "-o", str(program), str(_SOURCE)],
        check=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    return program
