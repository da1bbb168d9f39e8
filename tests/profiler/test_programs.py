"""Programs as distributions build them, in a guest: position independent, of many
mappings, most of their code in libraries, in the vDSO, or made at run time."""

from __future__ import annotations

import re
import stat
import subprocess
from collections import defaultdict
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from kvmgdb.demo.cache import cache_directory
from kvmgdb.demo.guest import LinuxGuest
from kvmgdb.demo.initramfs import Entry, build_initramfs, cpio
from kvmgdb.demo.kernel import Kernel, fetch_kernel
from kvmgdb.machine.target import parse_target
from kvmgdb.profiler.recording import FrameKind
from tests.guests.linux.fixtures import StartGuest
from tests.profiler.sampled import Sampled, holds, sample
from tests.support.require import requires

pytestmark = requires("qemu", "cc")

_SOURCES = Path(__file__).parent / "guests"
_GCC = ("gcc", "-O2", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror")


def _wanted(library: str) -> dict[str, set[tuple[str, str]]]:
    """What each task is met in: functions, and the file that each is of."""
    return {
        "shares": {("shares", "/work"), ("shared_work", library), ("shared_inner", library)},
        "clocks": {("__vdso_clock_gettime", "[vdso]")},
        "mangles": {("mangles", "/work"), ("work::Loop<int>::run(unsigned int)", "/work")},
        "generates": {("generates", "/work"), ("", "[JIT]")},
    }


def _run(*command: str | Path) -> str:
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def _build(kind: str, directory: Path) -> dict[str, bytes]:
    """The program's files by their paths in the guest."""
    work, shared = directory / "work", directory / "libshared.so"
    if kind == "static":
        sources = (_SOURCES / "work.c", _SOURCES / "shared.c")
        _run(*_GCC, "-static-pie", "-fPIE", "-o", work, *sources)
        return {"work": work.read_bytes()}
    library = ("-shared", "-fPIC", "-Wl,-soname,libshared.so")
    _run(*_GCC, *library, "-o", shared, _SOURCES / "shared.c")
    _run(*_GCC, "-pie", "-fPIE", "-o", work, _SOURCES / "work.c", shared, "-Wl,-rpath,/lib")
    loader = re.search(r"interpreter: /(.*)\]", _run("readelf", "-lW", work))
    assert loader
    libc = Path(_run("gcc", "-print-file-name=libc.so.6").strip())
    return {
        "work": work.read_bytes(),
        loader[1]: Path("/", loader[1]).read_bytes(),
        "lib/libc.so.6": libc.read_bytes(),
        "lib/libshared.so": shared.read_bytes(),
    }


# Of a task: compilers leave frame pointers out of functions that call nothing.
_CHAINS = {"shares": ["main", "shares", "shared_work"], "generates": ["main", "generates", ""]}


def _has_chain(sampled: Sampled, name: str, chain: list[str]) -> bool:
    stacks = (stack for task, stack in sampled.stacks() if task.name == name)
    return any(holds([frame.name for frame in stack], chain) for stack in stacks)


def _archive(files: dict[str, bytes]) -> bytes:
    folders = {str(folder) for name in files for folder in Path(name).parents} - {"."}
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in sorted(folders)]
    entries += [Entry(name, stat.S_IFREG | 0o755, content) for name, content in files.items()]
    return cpio(entries)


def _met(sampled: Sampled) -> dict[str, set[tuple[str, str]]]:
    met: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for task, stack in sampled.stacks():
        met[task.name] |= {(frame.name, frame.module) for frame in stack}
    return met


def _profile(guest: LinuxGuest, library: str) -> None:
    wanted = _wanted(library)

    def lacks(sampled: Sampled) -> list[object]:
        met = _met(sampled)
        functions = [(task, some - met[task]) for task, some in wanted.items() if some - met[task]]
        return [*functions, *(each for each in _CHAINS.items() if not _has_chain(sampled, *each))]

    with closing(parse_target(str(guest.pid)).open()) as machine:
        sampled = sample(machine, lambda sampled: not lacks(sampled), 100.0)
    assert not lacks(sampled)
    assert sampled.session.incomplete_programs == []
    # What no code is has called nothing; only the kernel, of a task that it gave another
    # program to, may be above it.
    for _, stack in sampled.stacks():
        for caller, called in pairwise(stack):
            if caller.module == "[not code]":
                assert called.kind in (FrameKind.KERNEL, FrameKind.MODULE), stack


def _start(start: StartGuest, kernel: Kernel, kind: str, directory: Path) -> LinuxGuest:
    initrd = directory / "initrd"
    initrd.write_bytes(build_initramfs().read_bytes() + _archive(_build(kind, directory)))
    return start(kernel, append="rdinit=/work", arguments=("-initrd", str(initrd)))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_their_functions_have_names(
    linux_kernel: Kernel, start_linux_guest: StartGuest, tmp_path: Path, kind: str
) -> None:
    guest = _start(start_linux_guest, linux_kernel, kind, tmp_path)
    _profile(guest, "/work" if kind == "static" else "/lib/libshared.so")


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["bullseye", "trixie", "sid"])
def test_under_other_kernels(start_linux_guest: StartGuest, tmp_path: Path, suite: str) -> None:
    """Mappings are in a red-black tree until 6.0, in a maple tree since."""
    package = "linux-image-cloud-amd64"
    if not (cache_directory("kernels") / "by-package" / f"{package}@{suite}").exists():
        pytest.skip(f"the kernel {package}@{suite} is not in the cache")
    guest = _start(start_linux_guest, fetch_kernel(package, suite), "dynamic", tmp_path)
    _profile(guest, "/lib/libshared.so")
