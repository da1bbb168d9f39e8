"""A flame graph as one HTML file that needs nothing else: no network, no server.

d3 and d3-flame-graph draw it; they are built into the package
(scripts/web_libraries.py), and from there into each file.
"""

from __future__ import annotations

import html
import json
import re
from importlib import resources
from typing import BinaryIO

from kvmgdb.errors import HostError
from kvmgdb.profiler.recording import Recording
from kvmgdb.profiler.summary import Summary
from kvmgdb.profiler.tree import CallTree, Function, Node
from kvmgdb.profiler.view import View

_WEB = "web"
_LIBRARIES = {"D3": "lib/d3.js", "D3_FLAME_GRAPH": "lib/d3-flame-graph.js"}
_OWN = {"STYLE": "page.css", "SCRIPT": "page.js"}


def write(recording: Recording, view: View, file: BinaryIO) -> None:
    tree = CallTree(recording, view)
    tree.add()
    least = tree.least_drawn()
    facts = Summary.of(recording).lines()
    if least > 1:
        facts.append(f"calls with less than {least} samples are not drawn")
    parts = {
        "TITLE": html.escape(f"Flame graph: {recording.target}"),
        "FACTS": "<br>\n".join(html.escape(line) for line in facts),
        "DATA": _data(tree, least),
        **{name: _read(path) for name, path in (_LIBRARIES | _OWN).items()},
    }
    # In one pass: what is put in is not searched for more places.
    page = re.sub(r"@([A-Z0-9_]+)@", lambda place: parts[place[1]], _read("page.html"))
    file.write(page.encode())


def _read(name: str) -> str:
    file = resources.files("kvmgdb.profiler") / _WEB / name
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise HostError(
            f"this installation of kvmgdb lacks the library {name} that draws flame graphs",
            remedy="install kvmgdb again, or choose another format",
        ) from error


def _data(tree: CallTree, least: int) -> str:
    numbers: dict[Function, int] = {}
    text = _tree_text(tree.root, least, numbers)
    functions = [
        [function.label, function.kind.name.lower(), function.module] for function in numbers
    ]
    content = f'{{"functions":{json.dumps(functions)},"tree":{text}}}'
    # Nothing in a name may end the script element, or open a comment in it.
    return content.replace("<", "\\u003c")


def _tree_text(root: Node, least: int, numbers: dict[Function, int]) -> str:
    """The calls as JSON. They may be nested deeper than the json module can follow."""
    parts: list[str] = []
    waiting: list[Node | str] = [root]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            parts.append(item)
            continue
        number = numbers.setdefault(item.function, len(numbers))
        parts.append(f'{{"f":{number},"v":{item.total}')
        if item.own:
            parts.append(f',"o":{item.own}')
        children = [child for child in item.children.values() if child.total >= least]
        if not children:
            parts.append("}")
            continue
        parts.append(',"c":[')
        waiting.append("]}")
        for position, child in enumerate(children):
            if position:
                waiting.append(",")
            waiting.append(child)
    return "".join(parts)
