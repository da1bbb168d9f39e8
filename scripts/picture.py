"""Draws docs/demo.svg: what `make demo` prints, taken from a real run.

usage: .venv/bin/python scripts/picture.py [OUTPUT-OF-THE-DEMO]
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 112
# The parts of the demo that fit into a picture, by their headings.
PARTS = ("threads", "by name", "Types", "runs on")


def main() -> None:
    if len(sys.argv) > 1:
        output = Path(sys.argv[1]).read_text()
    else:
        command = [str(ROOT / ".venv/bin/kvmgdb"), "demo", "--batch"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for line in selected(output):
        console.print(styled(line), soft_wrap=False, overflow="ellipsis", no_wrap=True)
    picture = console.export_svg(title="kvmgdb")
    # The font is the reader's own: a picture must not fetch anything.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.S)
    picture = picture.replace("Fira Code", "monospace")
    (ROOT / "docs" / "demo.svg").write_text(picture)


def selected(output: str) -> list[str]:
    """The lines up to the first heading, and those of the chosen parts."""
    lines: list[str] = []
    keep = True
    for line in output.expandtabs().splitlines():
        if line.startswith("-- "):
            keep = any(part in line for part in PARTS)
        if keep and not line.startswith(("warning:", "Reading /")):
            lines.append(line)
    return lines


def styled(line: str) -> Text:
    # Renderers drop spaces at the start of an SVG text.
    line = "\N{NO-BREAK SPACE}" * (len(line) - len(line.lstrip())) + line.lstrip()
    if line.startswith("-- "):
        return Text(line, style="bold cyan")
    if line.startswith("(gdb)"):
        return Text(line, style="bold")
    if line.strip().startswith("ok:"):
        return Text(line, style="green")
    return Text(line)


if __name__ == "__main__":
    main()
