"""What cffi is told is what the header says."""

from __future__ import annotations

import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmgdb._native import ffi, lib
from kvmgdb.errors import HostError
from kvmgdb.machine.native import check_stamp

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "native" / "include" / "kvmgdb" / "kvmgdb.h"


@pytest.fixture
def declarations(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    monkeypatch.chdir(ROOT)
    function: Callable[[Path], str] = runpy.run_path("native/build_ffi.py")["declarations"]
    return function


def test_every_function_of_the_header_can_be_called() -> None:
    declared = set(
        re.findall(
            r"\b(kvmgdb_\w+)\(", re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
        )
    )
    assert len(declared) > 15
    assert declared <= set(dir(lib))


def test_a_header_without_its_markers_is_refused(
    declarations: Callable[[Path], str], tmp_path: Path
) -> None:
    assert "kvmgdb_memory_read" in declarations(HEADER)
    for marker in ("/* cffi: begin */", "/* cffi: end */"):
        damaged = tmp_path / "kvmgdb.h"
        damaged.write_text(HEADER.read_text().replace(marker, ""))
        with pytest.raises(ValueError, match="markers"):
            declarations(damaged)


def test_only_the_facades_import_the_extension() -> None:
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "kvmgdb").rglob("*.py")
        if re.search(r"^\s*(from|import) .*\b_native\b", path.read_text(), flags=re.MULTILINE)
    }
    parts = ("machine", "linux", "symbols", "profiler", "rsp")
    assert importers == {f"kvmgdb/{part}/native.py" for part in parts}


def test_an_extension_older_than_its_checkout(tmp_path: Path) -> None:
    stamp = ffi.string(lib.kvmgdb_headers).decode()
    check_stamp(stamp, ROOT)
    check_stamp(stamp, tmp_path)  # no checkout: installed
    headers = tmp_path / "native" / "include" / "kvmgdb"
    shutil.copytree(HEADER.parent, headers)
    check_stamp(stamp, tmp_path)
    with (headers / HEADER.name).open("a") as header:
        header.write("int kvmgdb_new(void);\n")
    for other in (stamp, ""):
        with pytest.raises(HostError, match="not of this checkout") as failure:
            check_stamp(other, tmp_path)
        assert "make setup" in failure.value.remedy
