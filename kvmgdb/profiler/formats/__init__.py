"""The files that recordings are written to, one module for each format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kvmgdb.errors import UsageError
from kvmgdb.profiler import storage
from kvmgdb.profiler.formats import (
    firefox,
    folded,
    html,
    perf_script,
    pprof,
    speedscope,
    svg,
)
from kvmgdb.profiler.output import whole_file
from kvmgdb.profiler.recording import Recording
from kvmgdb.profiler.view import View


@dataclass(frozen=True)
class _Format:
    """``suffixes`` are the ends of file names that mean this format; the first is
    the usual one."""

    suffixes: tuple[str, ...]
    write: Callable[[Recording, View, BinaryIO], None]


OWN = "kvmprof"
"""The format that keeps all of a recording, whatever the view."""

_OTHERS = {
    "html": _Format((".html", ".htm"), html.write),
    "svg": _Format((".svg",), svg.write),
    "folded": _Format((".folded", ".collapsed"), folded.write),
    "speedscope": _Format((".speedscope.json",), speedscope.write),
    "pprof": _Format((".pb.gz", ".pprof"), pprof.write),
    "firefox": _Format((".firefox.json",), firefox.write),
    "perf": _Format((".perf", ".perf.txt"), perf_script.write),
}

NAMES = (OWN, *_OTHERS)


def format_of(path: Path, name: str | None = None) -> str:
    """The format to write ``path`` in: ``name``, or what the file's name ends with.
    Raises UsageError."""
    if name is not None:
        if name not in NAMES:
            raise UsageError(f"there is no format {name}", f"there are {', '.join(NAMES)}")
        return name
    ends = {storage.SUFFIX: OWN}
    ends |= {suffix: found for found, kind in _OTHERS.items() for suffix in kind.suffixes}
    for suffix, found in ends.items():
        if path.name.lower().endswith(suffix):
            return found
    raise UsageError(
        f"the name {path} does not say what format the file should have",
        f"name the format, or let the name end with one of {' '.join(ends)}",
    )


def write(recording: Recording, path: Path, name: str, view: View | None = None) -> None:
    """Writes what ``view`` shows of a recording, in the format ``name``: all of the
    file or nothing. Raises OutputError."""
    if name == OWN:
        storage.save(recording, path)
        return
    with whole_file(path) as file:
        _OTHERS[name].write(recording, view or View(), file)
