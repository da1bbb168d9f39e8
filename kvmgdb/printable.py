"""Text that somebody else made up, fit for a terminal.

A task's name, a line of the guest's log or the name of a virtual machine may hold
escape sequences, which a terminal would obey.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """One line: all that is not printable, a line's end too, becomes ``?``."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def printable_lines(text: str) -> str:
    """Text of several lines, which stay; so do tabs."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))
