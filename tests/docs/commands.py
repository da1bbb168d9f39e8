"""The commands that the documentation shows, taken out of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


_SHELL, _GDB = "$ ", "(gdb) "
# What differs from one run to the next: numbers, and values of arguments.
_VALUE = re.compile(r"=(<optimized out>|0x[0-9a-f]+|-?\d+)")
_NUMBER = re.compile(r"\b(0x[0-9a-f]+|\d[\d.]*)\b")


@dataclass(frozen=True)
class Command:
    """A command, what is typed into it (``(gdb)`` lines), and the output that the
    page shows of it, line by line."""

    line: str
    typed: tuple[str, ...]
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Session:
    """One page's commands at a prompt, in order."""

    page: str
    commands: tuple[Command, ...]


def sessions() -> list[Session]:
    """For each page the commands of its ``console`` blocks."""
    found = []
    for page in PAGES:
        commands = [
            command
            for kind, text in _BLOCK.findall(page.read_text())
            if kind == "console"
            for command in _commands(text.splitlines())
        ]
        if commands:
            found.append(Session(page.name, tuple(commands)))
    return found


def _commands(lines: list[str]) -> list[Command]:
    starts = [index for index, line in enumerate(lines) if line.startswith(_SHELL)]
    found = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        below = lines[start + 1 : end]
        typed = tuple(line.removeprefix(_GDB) for line in below if line.startswith(_GDB))
        shown = tuple(line for line in below if line.strip() and not line.startswith(_GDB))
        found.append(Command(lines[start].removeprefix(_SHELL), typed, shown))
    return found


def comparable(text: str) -> str:
    """Output without what no two runs have in common, on one line."""
    text = _VALUE.sub("=V", text.replace(_GDB, ""))
    return " ".join(_NUMBER.sub("N", text).split())


def setup_commands() -> list[str]:
    """The commands of the README's ``sh`` blocks, without their comments."""
    text = PAGES[0].read_text()
    return [
        line.partition("#")[0].strip()
        for kind, block in _BLOCK.findall(text)
        if kind == "sh"
        for line in block.splitlines()
    ]
