"""A flame graph as a picture (SVG 1.1): nothing moves in it, but a browser shows
each function's whole name and share under the pointer."""

from __future__ import annotations

from html import escape
from typing import BinaryIO
from zlib import crc32

from kvmgdb.profiler.recording import FrameKind, Recording
from kvmgdb.profiler.summary import Summary
from kvmgdb.profiler.tree import CallTree, Node
from kvmgdb.profiler.view import View

# Pixels.
_WIDTH = 1200
_ROW = 17
_MARGIN = 10
_TITLE = 30
_FOOT = 18
_LETTER = 6.7  # of the font below, about
_NARROWEST = 0.5
_FEWEST_LETTERS = 5  # of a name that is cut short

# Hue in degrees and saturation in percent, as in the HTML page.
_HUES = {
    FrameKind.KERNEL: (28, 90),
    FrameKind.MODULE: (48, 85),
    FrameKind.USER: (140, 45),
    FrameKind.JIT: (175, 50),
    FrameKind.INTERPRETER: (265, 50),
    FrameKind.UNKNOWN: (0, 45),
    FrameKind.MARK: (210, 12),
}


def write(recording: Recording, view: View, file: BinaryIO) -> None:
    tree = CallTree(recording, view)
    tree.add()
    total = tree.root.total
    scale = (_WIDTH - 2 * _MARGIN) / max(total, 1)
    drawn = _place(tree.root, max(tree.least_drawn(), _NARROWEST / scale))
    rows = 1 + max(depth for _, depth, _ in drawn)
    height = _TITLE + rows * _ROW + _FOOT + _MARGIN
    bottom = _TITLE + (rows - 1) * _ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="monospace" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{_WIDTH / 2:g}" y="20" font-size="15" text-anchor="middle">'
        f"{escape(recording.target)}</text>",
    ]
    for node, depth, start in drawn:
        x = _MARGIN + start * scale
        lines += _box(node, x, bottom - depth * _ROW, node.total * scale, total)
    lines.append(
        f'<text x="{_MARGIN}" y="{height - _MARGIN}" fill="#57606a">'
        f"{escape(Summary.of(recording).lines()[0])}</text>"
    )
    lines.append("</svg>\n")
    file.write("\n".join(lines).encode())


def _place(root: Node, least: float) -> list[tuple[Node, int, int]]:
    """The calls to draw, each with its depth and the samples to its left."""
    found = []
    waiting = [(root, 0, 0)]
    while waiting:
        node, depth, start = waiting.pop()
        found.append((node, depth, start))
        for child in sorted(node.children.values(), key=lambda child: child.function):
            if child.total >= least:
                waiting.append((child, depth + 1, start))
            start += child.total
    return found


def _box(node: Node, x: float, y: int, width: float, total: int) -> list[str]:
    name = node.function.label
    hue, saturation = _HUES[node.function.kind]
    lightness = 60 + crc32(name.encode()) % 17
    share = 100 * node.total / max(total, 1)
    lines = [
        f"<g><title>{escape(name)}: {node.total} samples ({share:.2f} %)</title>",
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_ROW - 1}" rx="1" '
        f'fill="hsl({hue},{saturation}%,{lightness}%)"/>',
    ]
    letters = int((width - 6) / _LETTER)
    if letters >= min(len(name), _FEWEST_LETTERS):
        shown = name if len(name) <= letters else name[: letters - 2] + ".."
        lines.append(f'<text x="{x + 3:.2f}" y="{y + 12}">{escape(shown)}</text>')
    lines.append("</g>")
    return lines
