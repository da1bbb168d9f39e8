"""Fetches JavaScript from the npm registry: pinned versions, checked against the
registry's integrity hashes.

usage: web_libraries.py flame-graph|speedscope DIRECTORY

``flame-graph`` are the libraries that are built into flame graphs; ``speedscope``
is the viewer of that name, by which tests check what we write.
``NPM_CONFIG_REGISTRY`` names another registry, as it does for npm.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
import tarfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

_REGISTRY = "https://registry.npmjs.org"
_TRIES = 4
_SECONDS = 60
_MAX_BYTES = 8 << 20


class Library(NamedTuple):
    """``sha512`` as in package-lock.json; ``files``: what is taken out of the
    package, and the names it gets."""

    name: str
    version: str
    sha512: str
    files: dict[str, str]


FLAME_GRAPH = (
    Library(
        "d3",
        "7.9.2",
        "ZKb/mONPVKzaO5UlcWcwN8bS4ezvQaYu+bsou+XgNABdGC800kwH651ADTbbTxMPHW13UlvbQafdmJQDk1w7Mg==",
        {"dist/d3.min.js": "d3.js", "LICENSE": "d3.LICENSE"},
    ),
    Library(
        "d3-flame-graph",
        "5.0.0",
        "ALZQ4at8Dex8HCoj9D5p5TY6gLNEc2vAZAy+NKO/6GLEfhYJmGxYuRClO6RPoplndyOHxQTPipdlGeMggkjtnQ==",
        {
            "dist/d3-flamegraph.umd.min.js": "d3-flame-graph.js",
            "LICENSE": "d3-flame-graph.LICENSE",
        },
    ),
)


SPEEDSCOPE = (
    Library(
        "speedscope",
        "1.25.0",
        "cpf9HWTZf1ijLXBJrk87Ve/54tnYx6rlf0gUThvn3ook6h63hLXVOQiMf44PT+XoV503cPfvfiT5gP5vojp6Ag==",
        {
            "dist/release/index.html": "index.html",
            "dist/release/speedscope-Y2522XSH.js": "speedscope-Y2522XSH.js",
            "dist/release/speedscope-GHPHNKXC.css": "speedscope-GHPHNKXC.css",
            "dist/release/file-format-schema.json": "file-format-schema.json",
        },
    ),
)

_SETS = {"flame-graph": FLAME_GRAPH, "speedscope": SPEEDSCOPE}


def main(libraries: tuple[Library, ...], directory: Path) -> None:
    stamp = directory / "versions"
    wanted = "".join(f"{library}\n" for library in libraries)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    directory.mkdir(parents=True, exist_ok=True)
    for library in libraries:
        for name, content in unpack(library, fetch(library)).items():
            (directory / name).write_bytes(content)
    stamp.write_text(wanted)


def fetch(library: Library) -> bytes:
    """The package as the registry has it. Exits where it is another one."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY", _REGISTRY).rstrip("/")
    url = f"{registry}/{library.name}/-/{library.name}-{library.version}.tgz"
    for left in reversed(range(_TRIES)):
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
                content: bytes = answer.read(_MAX_BYTES)
            break
        except OSError as error:
            if not left:
                sys.exit(
                    f"cannot fetch {url}: {error}\n"
                    "check the network; NPM_CONFIG_REGISTRY names another npm registry"
                )
            time.sleep(2)
    found = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != library.sha512:
        sys.exit(f"{url} is not {library.name} {library.version}: its SHA-512 is {found}")
    return content


def unpack(library: Library, content: bytes) -> dict[str, bytes]:
    """The files that are wanted, by the names they get."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for inside, name in library.files.items():
            file = archive.extractfile(f"package/{inside}")
            if file is None:
                sys.exit(f"{library.name} {library.version} has no file {inside}")
            found[name] = file.read()
    return found


if __name__ == "__main__":
    main(_SETS[sys.argv[1]], Path(sys.argv[2]))
