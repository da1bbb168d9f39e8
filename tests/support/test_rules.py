"""The rules of the test suite itself: skips that become failures, leftovers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.require import NEEDS, required

ROOT = Path(__file__).resolve().parents[2]
TEST = "tests/support/test_gdb.py::test_qemu_says_why_it_does_not_start"


def run_pytest(require: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", TEST],
        cwd=ROOT,
        env={**os.environ, "KVMGDB_REQUIRE": require, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_without_what_it_needs_a_test_is_skipped_with_the_reason(tmp_path: Path) -> None:
    result = run_pytest("", str(tmp_path))
    assert "1 skipped" in result.stdout
    assert "needs qemu: there is no qemu-system-x86_64" in result.stdout
    assert result.returncode == 0


@pytest.mark.parametrize("require", ["all", "kvm,qemu"])
def test_a_required_need_fails_with_the_reason(require: str, tmp_path: Path) -> None:
    result = run_pytest(require, str(tmp_path))
    assert "1 error" in result.stdout or "1 failed" in result.stdout
    assert "KVMGDB_REQUIRE demands qemu: there is no qemu-system-x86_64" in result.stdout
    assert result.returncode == 1


def test_an_unknown_need_is_an_error() -> None:
    result = run_pytest("qemu,gbd", os.environ["PATH"])
    assert "KVMGDB_REQUIRE names unknown needs: gbd" in result.stderr
    assert result.returncode == pytest.ExitCode.USAGE_ERROR


def test_all_is_every_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMGDB_REQUIRE", "all")
    assert required() == frozenset(NEEDS)


LEAVES_SOMETHING = """
import subprocess, time
from tests.support import leftovers
leftovers.mark_session()
left = subprocess.Popen(["sleep", "300"], start_new_session=True)
time.sleep(0.1)  # /proc shows the environment a moment after the exec
found = leftovers.collect(patience=0.1)
assert [(leftover.pid, leftover.command.split()) for leftover in found] == [
    (left.pid, ["sleep", "300"])
], found
assert left.wait(5) == -9
assert leftovers.find() == []
"""


def test_a_process_left_running_is_found_and_killed() -> None:
    subprocess.run([sys.executable, "-c", LEAVES_SOMETHING], cwd=ROOT, check=True, timeout=90)
