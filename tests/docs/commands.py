"""The commands that the documentation shows, taken out of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Session:
    """One page's commands at a prompt, in order."""

    page: str
    commands: tuple[str, ...]


def sessions() -> list[Session]:
    """For each page the commands of its ``console`` blocks."""
    found = []
    for page in PAGES:
        commands = [
            line.removeprefix("$ ")
            for kind, text in _BLOCK.findall(page.read_text())
            if kind == "console"
            for line in text.splitlines()
            if line.startswith("$ ")
        ]
        if commands:
            found.append(Session(page.name, tuple(commands)))
    return found


def setup_commands() -> list[str]:
    """The commands of the README's ``sh`` blocks, without their comments."""
    text = PAGES[0].read_text()
    return [
        line.partition("#")[0].strip()
        for kind, block in _BLOCK.findall(text)
        if kind == "sh"
        for line in block.splitlines()
    ]
