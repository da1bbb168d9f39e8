"""The fixtures of tests that read a Linux guest."""

from tests.linux.fixtures import kernel, machine, probed_guest, start_probed

__all__ = ["kernel", "machine", "probed_guest", "start_probed"]
