"""The packets, by family. Importing this package registers all handlers."""

from kvmgdb.rsp.commands import (
    breakpoints,
    files,
    general,
    kernel,
    memory,
    qemu,
    registers,
    run,
    threads,
)

__all__ = [
    "breakpoints",
    "files",
    "general",
    "kernel",
    "memory",
    "qemu",
    "registers",
    "run",
    "threads",
]
