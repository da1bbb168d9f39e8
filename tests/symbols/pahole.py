"""Structures as pahole(1) reads them from a BTF file."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

# A member at the outermost level: its name if it has one, then a comment of
# offset, bit offset in a bit field, and size.
_MEMBER = re.compile(
    r"^\t(?P<text>[^\t].*?);?\s+/\*\s*(?P<offset>\d+)(?::\s*(?P<bit>\d+))?\s+(?P<size>\d+) \*/"
)
_ATTRIBUTE = re.compile(r"\s*__attribute__\(\(.*?\)+\)\)?")
_FUNCTION = re.compile(r"\(\*(\w+)\)")
_NAME = re.compile(r"(\w+)(?:\[\d*\])*(?: ?:\d+)?$")
_END = re.compile(r"^\t\}(?:\s+(?P<name>\w+)(?:\[\d*\])*)?[^;]*;\s+/\*\s*(?P<offset>\d+)\s+\d+ \*/")

# By name (None for anonymous members) the place in bits.
Members = list[tuple[str | None, int]]


def sizes(btf: Path) -> dict[str, int]:
    """Bytes of each named structure."""
    lines = _pahole("--sizes", str(btf)).splitlines()
    return {words[0]: int(words[1]) for words in (line.split("\t") for line in lines)}


def members(btf: Path, names: list[str]) -> dict[str, Members]:
    """The members of structures, without what is inside of them."""
    text = _pahole("-C", ",".join(names), str(btf))
    found: dict[str, Members] = {}
    current: Members = []
    for line in _ATTRIBUTE.sub("", text).splitlines():
        if line.startswith("struct ") and line.endswith("{"):
            current = found.setdefault(line.split()[1], [])
        elif match := _END.match(line):
            current.append((match["name"], 8 * int(match["offset"])))
        elif match := _MEMBER.match(line):
            bits = 8 * int(match["offset"]) + int(match["bit"] or 0)
            current.append((_name(match["text"]), bits))
    return found


def _name(text: str) -> str | None:
    match = _FUNCTION.search(text) or _NAME.search(text.rstrip())
    return match[1] if match else None


def _pahole(*arguments: str) -> str:
    return subprocess.run(
        ["pahole", "-F", "btf", *arguments],
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
    ).stdout
