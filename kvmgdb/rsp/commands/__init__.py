"""The packets, by family. Importing this package registers all handlers."""

from kvmgdb.rsp.commands import breakpoints, general, memory, qemu, registers, run, threads

__all__ = ["breakpoints", "general", "memory", "qemu", "registers", "run", "threads"]
