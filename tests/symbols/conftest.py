"""The fixtures of tests of symbol files: the shared guest and its kernel."""

from tests.linux.fixtures import kernel, machine, probed_guest, start_probed
from tests.symbols.files import vmlinux

__all__ = ["kernel", "machine", "probed_guest", "start_probed", "vmlinux"]
