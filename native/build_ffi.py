"""Builds the extension ``kvmgdb._native`` (cffi, API mode).

What cffi is told is the part of each public header between its two "cffi:"
markers: a declaration is written once. setuptools runs this from the root of
the project, so paths are relative to that.
"""

import hashlib
import re
from pathlib import Path

from cffi import FFI

NATIVE = Path("native")
INCLUDE = NATIVE / "include" / "kvmgdb"
HEADERS = [INCLUDE / name for name in ("kvmgdb.h", "linux.h", "symbols.h", "sample.h", "profile.h")]
SOURCES = sorted(str(path) for path in (NATIVE / "src").rglob("*.c"))
DEPENDS = sorted(str(path) for path in [*HEADERS, *(NATIVE / "src").rglob("*.h")])

# Called where a callback region's bytes come from Python: kvmgdb_read_fn and
# kvmgdb_write_fn.
PYTHON_CALLBACKS = """
extern "Python" {
int kvmgdb_python_read(void *, uint64_t, void *, size_t);
int kvmgdb_python_write(void *, uint64_t, const void *, size_t);
}
"""


def declarations(header: Path) -> str:
    """The declarations between the markers, without their comments."""
    text = header.read_text(encoding="utf-8")
    _, begin, rest = text.partition("/* cffi: begin */")
    declared, end, _ = rest.partition("/* cffi: end */")
    if not begin or not end:
        raise ValueError(f"{header} has lost its cffi markers")
    return re.sub(r"/\*.*?\*/", "", declared, flags=re.DOTALL)


# By which a checkout that is newer than its extension is told (machine/native.py).
STAMP = hashlib.sha256(b"".join(header.read_bytes() for header in HEADERS)).hexdigest()

ffibuilder = FFI()
ffibuilder.cdef(
    "typedef int... pid_t; static const char *const kvmgdb_headers;"
    + "".join(map(declarations, HEADERS))
    + PYTHON_CALLBACKS
)
ffibuilder.set_source(
    "kvmgdb._native",
    f'static const char *const kvmgdb_headers = "{STAMP}";\n'
    + "".join(f"#include <kvmgdb/{header.name}>\n" for header in HEADERS),
    sources=SOURCES,
    depends=DEPENDS,
    include_dirs=[str(NATIVE / "include")],
    define_macros=[("_GNU_SOURCE", "1")],
    extra_compile_args=["-O2", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"],
)
