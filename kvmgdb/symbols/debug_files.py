"""The user's own vmlinux with source lines, where it is usually kept.

A file counts only if its build ID is that of the kernel in the guest: a name or a
version says nothing of what a file was built from.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvmgdb.linux.identity import find_build_id

_DEBUG_ROOT = Path("/usr/lib/debug")
_FETCH_SECONDS = 600.0
# An ELF header of a 64-bit little-endian file, and its section headers (elf.h).
_IDENT = b"\x7fELF\2\1"
_HEADER = struct.Struct("<40xQ10xHH2x")
_SECTION = struct.Struct("<4xI16xQQ24x")
_SHT_NOTE = 7
_MAX_NOTES = 64 << 10


@dataclass(frozen=True)
class DebugFiles:
    """``found`` is the file of the kernel, None where there is none. ``strangers``
    are files at places where a user would expect it, with their build IDs: of
    other kernels."""

    found: Path | None
    strangers: tuple[tuple[Path, str], ...] = ()


def find_debug_file(
    build_id: str,
    release: str | None,
    directory: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> DebugFiles:
    """Looks in ``directory`` (the current one), in the build-id directories, where
    packages and build trees keep their vmlinux, and asks the servers of
    DEBUGINFOD_URLS, which may take minutes."""
    strangers = []
    here = Path.cwd() if directory is None else directory
    for path in _own(here, release):
        theirs = read_build_id(path)
        if theirs == build_id:
            return DebugFiles(path)
        if theirs is not None:
            strangers.append((path, theirs))
    for path in _installed(build_id, release):
        if read_build_id(path) == build_id:
            return DebugFiles(path, tuple(strangers))
    fetched = _fetch(build_id, environment)
    return DebugFiles(fetched, tuple(strangers))


def read_build_id(path: Path) -> str | None:
    """The GNU build ID of an ELF file, hexadecimal; None where there is no such
    file, or it has none."""
    try:
        with path.open("rb") as stream:
            header = stream.read(_HEADER.size)
            if not header.startswith(_IDENT) or len(header) < _HEADER.size:
                return None
            table, entry_size, count = _HEADER.unpack(header)
            stream.seek(table)
            sections = stream.read(entry_size * count)
            for at in range(0, len(sections) - _SECTION.size + 1, max(entry_size, _SECTION.size)):
                kind, offset, size = _SECTION.unpack_from(sections, at)
                if kind == _SHT_NOTE and size <= _MAX_NOTES:
                    stream.seek(offset)
                    build_id = find_build_id(stream.read(size))
                    if build_id is not None:
                        return build_id
    except (OSError, OverflowError, ValueError, struct.error):
        return None
    return None


def _own(directory: Path, release: str | None) -> Iterator[Path]:
    yield directory / "vmlinux"
    if release is not None and "/" not in release:
        yield directory / f"vmlinux-{release}"


def _installed(build_id: str, release: str | None) -> Iterator[Path]:
    yield _DEBUG_ROOT / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    if release is None or "/" in release:
        return
    yield _DEBUG_ROOT / "boot" / f"vmlinux-{release}"
    yield _DEBUG_ROOT / "lib" / "modules" / release / "vmlinux"
    yield _DEBUG_ROOT / "usr" / "lib" / "modules" / release / "vmlinux"
    yield Path("/lib/modules") / release / "build" / "vmlinux"
    yield Path("/boot") / f"vmlinux-{release}"


def _fetch(build_id: str, environment: Mapping[str, str]) -> Path | None:
    """elfutils' client knows the cache, the servers and their limits."""
    client = shutil.which("debuginfod-find")
    if not environment.get("DEBUGINFOD_URLS") or client is None:
        return None
    try:
        result = subprocess.run(
            [client, "debuginfo", build_id],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_FETCH_SECONDS,
            env=dict(environment),
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    path = Path(os.fsdecode(result.stdout.strip()))
    return path if read_build_id(path) == build_id else None
