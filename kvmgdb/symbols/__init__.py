"""Files from which debuggers learn what a guest's kernel is made of.

A kernel without its vmlinux still has its symbols, types and unwind tables in
memory; :func:`build_vmlinux` makes an ELF file with DWARF of them, at the
addresses where the guest runs, and :func:`build_module` one for a module. Both read
the guest first (:func:`read_vmlinux`, :func:`read_module`), and build without it.
"""

from kvmgdb.symbols.build import (
    FileParts,
    SymbolFile,
    build_module,
    build_vmlinux,
    read_module,
    read_vmlinux,
)

__all__ = [
    "FileParts",
    "SymbolFile",
    "build_module",
    "build_vmlinux",
    "read_module",
    "read_vmlinux",
]
