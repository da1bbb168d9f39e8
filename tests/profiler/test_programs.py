"""Programs as distributions build them, in a guest: position independent, of many
mappings, most of their code in libraries, in the vDSO, or made at run time."""

from __future__ import annotations

import re
import stat
import subprocess
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest

from kvmgdb.demo.initramfs import Entry, build_initramfs, cpio
from kvmgdb.demo.kernel import Kernel
from kvmgdb.machine.target import parse_target
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


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_their_functions_have_names(
    linux_kernel: Kernel, start_linux_guest: StartGuest, tmp_path: Path, kind: str
) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(build_initramfs().read_bytes() + _archive(_build(kind, tmp_path)))
    arguments = ("-initrd", str(initrd))
    guest = start_linux_guest(linux_kernel, append="rdinit=/work", arguments=arguments)

    wanted = _wanted("/work" if kind == "static" else "/lib/libshared.so")

    def lacks(sampled: Sampled) -> dict[str, set[tuple[str, str]]]:
        met = _met(sampled)
        return {task: some - met[task] for task, some in wanted.items() if some - met[task]}

    with closing(parse_target(str(guest.pid)).open()) as machine:
        sampled = sample(machine, lambda sampled: not lacks(sampled), 100.0)
    assert not lacks(sampled)
    assert sampled.session.incomplete_programs == []
    # Whole chains, where all code on them has frame pointers.
    for chain in (["shares", "shared_work"], ["generates", ""]):
        stacks = (stack for task, stack in sampled.stacks() if task.name == chain[0])
        assert any(holds([frame.name for frame in stack], chain) for stack in stacks), chain
