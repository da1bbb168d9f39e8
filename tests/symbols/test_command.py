"""``kvmgdb vmlinux``: the file that it writes, and those that it does not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from kvmgdb.linux.attach import find_kernel
from kvmgdb.machine.target import parse_target
from kvmgdb.symbols import build_vmlinux
from tests.linux.probed import ProbedGuest
from tests.support.server import kvmgdb
from tests.symbols.files import readelf


def without_code(path: Path) -> bytes:
    """The file without what a kernel patches while it runs."""
    stripped = path.with_name("stripped")
    subprocess.run(
        ["objcopy", "--remove-section", ".text", str(path), str(stripped)], check=True, timeout=120
    )
    data = stripped.read_bytes()
    stripped.unlink()
    return data


def test_it_writes_the_kernel(probed_guest: ProbedGuest, tmp_path: Path) -> None:
    # Not with the fixture: QEMU's monitor has room for one.
    machine = parse_target(str(probed_guest.pid)).open()
    try:
        expected = build_vmlinux(find_kernel(machine), contents=True)
    finally:
        machine.close()
    path = tmp_path / "vmlinux"
    result = kvmgdb("vmlinux", str(probed_guest.pid), "-o", str(path), "--json", seconds=240)
    assert (result.returncode, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert facts["base"] == expected.base
    assert facts["build_id"] == expected.build_id
    assert facts["size"] == path.stat().st_size
    built = tmp_path / "expected"
    built.write_bytes(expected.data)
    assert without_code(path) == without_code(built)
    built.unlink()
    # One of ours may be replaced, also by another.
    again = kvmgdb(
        "vmlinux", str(probed_guest.pid), "-o", str(path), "--module", "loop", seconds=240
    )
    assert again.returncode == 0
    assert "loop_add" in readelf(path, "--syms")
    assert list(tmp_path.iterdir()) == [path]


def test_it_does_not_write_over_other_files(probed_guest: ProbedGuest, tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"\x7fELF, with the debug information of somebody")
    for target in (path, tmp_path, Path("/dev/null")):
        result = kvmgdb("vmlinux", str(probed_guest.pid), "-o", str(target))
        assert result.returncode == 2
        assert f"{target} is there already, and was not written by kvmgdb" in result.stderr
        assert "another name" in result.stderr
    assert path.read_bytes().endswith(b"somebody")
    result = kvmgdb("vmlinux", str(probed_guest.pid), "-o", str(tmp_path / "none" / "vmlinux"))
    assert result.returncode == 1
    assert "No such file or directory" in result.stderr


def test_a_module_that_is_not_loaded(probed_guest: ProbedGuest, tmp_path: Path) -> None:
    path = tmp_path / "btrfs"
    result = kvmgdb("vmlinux", str(probed_guest.pid), "-o", str(path), "--module", "btrfs")
    assert result.returncode == 1
    assert "the guest has no module btrfs loaded" in result.stderr
    assert "`kvmgdb modules`" in result.stderr
    assert not path.exists()
