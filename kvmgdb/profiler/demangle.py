"""Names of C++ and Rust functions as their programmers wrote them."""

from __future__ import annotations

import re
from functools import lru_cache

import itanium_demangler

from kvmgdb.profiler.rust_names import demangle_rust

# A guest makes names up: none is taken apart that no compiler would make.
_MAX_LENGTH = 1024
# Rust's older mangling ends with a hash of the crate.
_RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")


@lru_cache(1 << 14)
def demangle(name: str) -> str:
    """A name as it is where it is not mangled, or in a way that is not known."""
    if len(name) > _MAX_LENGTH:
        return name
    if name.startswith("_R"):
        return demangle_rust(name) or name
    if not name.startswith("_Z"):
        return name
    try:
        parsed = itanium_demangler.parse(name)
        text = name if parsed is None else str(parsed)
    except (NotImplementedError, RecursionError, LookupError, ValueError, TypeError):
        # What the library raises for a mangling that it does not know (a lambda), or
        # that is none, and no list of its own says: the name stays as the guest has it.
        return name
    return _RUST_HASH.sub("", text)
