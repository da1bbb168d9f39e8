"""A symbol file of the shared guest, on disk, and what readelf says of files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kvmgdb.linux.kernel import Kernel
from kvmgdb.symbols import build_vmlinux


@pytest.fixture
def vmlinux(kernel: Kernel, tmp_path: Path) -> Path:
    """The file of the shared guest's kernel."""
    path = tmp_path / "vmlinux"
    path.write_bytes(build_vmlinux(kernel).data)
    return path


def readelf(path: Path, *options: str) -> str:
    """What readelf prints; it must have nothing to complain about."""
    result = subprocess.run(
        ["readelf", "--wide", *options, str(path)], capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout
