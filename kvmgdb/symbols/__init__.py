"""Files from which debuggers learn what a guest's kernel is made of.

A kernel without its vmlinux still has its symbols, types and unwind tables in
memory; :func:`build_vmlinux` makes an ELF file with DWARF of them, at the
addresses where the guest runs, and :func:`build_module` one for a module.
"""

from kvmgdb.symbols.build import SymbolFile, build_module, build_vmlinux

__all__ = ["SymbolFile", "build_module", "build_vmlinux"]
