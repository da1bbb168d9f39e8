"""``kvmgdb report``, as its users call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvmgdb.cli import cli, main
from kvmgdb.profiler.compare import compare
from kvmgdb.profiler.recording import FrameKind, Recording, State
from kvmgdb.profiler.storage import load, save
from kvmgdb.profiler.tree import CallTree
from kvmgdb.profiler.view import View
from tests.profiler.recordings import IDLE, SHARES, TOTAL, known


@pytest.fixture
def file(tmp_path: Path) -> str:
    save(known(), tmp_path / "a.kvmprof")
    return str(tmp_path / "a.kvmprof")


def output(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["report", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def facts(*arguments: str) -> Any:
    return json.loads(output(*arguments, "--json"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(["report", *arguments])
    code = end.value.code
    assert isinstance(code, int)
    return code, capsys.readouterr().err


def test_functions_and_their_shares(file: str) -> None:
    found = facts(file)
    assert found["shown"] == TOTAL
    assert found["summary"]["samples"] == TOTAL
    assert found["summary"]["idle"] == IDLE
    shares = {entry["function"]: (entry["total"], entry["self"]) for entry in found["functions"]}
    assert {name: shares[name] for name in SHARES} == SHARES
    own = [entry["self"] for entry in found["functions"]]
    assert own == sorted(own, reverse=True)

    lines = output(file).splitlines()
    assert lines[0] == "2000 samples of vm & <1> in 10.0 s at 100 Hz, 2026-11-18 11:06:40 UTC"
    assert "guest time lost: 0.50 %" in lines
    row = next(line for line in lines if "compute;all" in line)
    assert row.split() == ["30.00", "%", "50.00", "%", "600", "compute;all", "/bin/work"]


def test_sorted_and_cut(file: str) -> None:
    lines = output(file, "--sort", "total", "--limit", "2").splitlines()
    start = next(number for number, line in enumerate(lines) if "FUNCTION" in line)
    assert [line.split()[-2] for line in lines[start + 1 : start + 3]] == ["_start", "main"]
    assert lines[-1] == f"... and {len(facts(file)['functions']) - 2} functions more"


def test_selections_and_roots(file: str) -> None:
    assert facts(file, "--vcpu", "1", "--idle")["shown"] == TOTAL // 2 + IDLE
    tree = facts(file, "--by", "task", "--by", "vcpu", "--tree")["tree"]
    assert [(row["depth"], row["function"]) for row in tree[:2]] == [
        (0, "work (100)"),
        (1, "vCPU 0"),
    ]


def test_the_call_tree(file: str) -> None:
    tree = [(row["depth"], row["function"], row["total"]) for row in facts(file, "--tree")["tree"]]
    assert tree[:4] == [
        (0, "_start", 1900),
        (1, "main", 1900),
        (2, "compute;all", 1000),
        (3, "memcpy", 400),
    ]
    lines = output(file, "--tree", "--min", "8").splitlines()
    assert lines[lines.index("") + 1 :] == [
        "  95.00 %  _start  (/bin/work)",
        "  95.00 %    main",
        "  50.00 %      compute;all",
        "  20.00 %        memcpy  (/lib/libc.so.6)",
        "  25.00 %      entry_SYSCALL_64",
        "  25.00 %        do_syscall_64",
        "  25.00 %        vfs_read",
        "  10.00 %          ext4_readpage [ext4]",
        '   9.00 %      </script><script>document.title="evil"</script>',
    ]


def test_who_calls_a_function(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ext4_readpage", "ext4_readpage [ext4]"):
        tree = facts(file, "--callers", name)["tree"]
        assert [(row["depth"], row["function"], row["total"]) for row in tree] == [
            (0, "ext4_readpage [ext4]", 200),
            (1, "vfs_read", 200),
            (2, "do_syscall_64", 200),
            (3, "entry_SYSCALL_64", 200),
            (4, "main", 200),
            (5, "_start", 200),
        ]
    # It calls itself, and is counted once.
    again = facts(file, "--callers", "again")["tree"]
    assert [(row["function"], row["total"]) for row in again[:2]] == [("again", 120), ("main", 120)]
    code, error = refused(capsys, file, "--callers", "nowhere")
    assert code == 1
    assert "no function nowhere is in what was recorded" in error


def test_an_empty_recording(tmp_path: Path) -> None:
    path = tmp_path / "empty.kvmprof"
    save(Recording("vm1"), path)
    result = CliRunner().invoke(cli, ["report", str(path)])
    assert result.exit_code == 0
    assert "no sample fits" in result.stderr
    assert facts(str(path))["functions"] == []


def test_conversion(file: str, tmp_path: Path) -> None:
    out = tmp_path / "out.folded"
    assert output(file, "-o", str(out), "--by", "vcpu") == ""
    assert "vCPU 0;_start;main;compute:all;memcpy 200" in out.read_text().splitlines()
    other = tmp_path / "out.txt"
    output(file, "-o", str(other), "--format", "kvmprof")
    assert load(other) == known()


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("-o", "out.json"), 2, "does not say what format"),
        (("-o", "/nowhere/out.svg"), 1, "cannot write /nowhere/out.svg: No such file"),
        (("-o", "/dev/full", "--format", "html"), 1, "No space left on device"),
        (("-o", "a.svg", "--json"), 2, "--json is for what is printed"),
        (("--format", "svg"), 2, "--format needs --output"),
        (("--tree", "--callers", "main"), 2, "exclude each other"),
        (("--diff", "/nowhere/old"), 1, "/nowhere/old: No such file"),
    ],
)
def test_wrong_usage(
    file: str,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    problem: str,
) -> None:
    found, error = refused(capsys, file, *arguments)
    assert problem in error
    assert found == code


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    path.write_text("<html>")
    code, error = refused(capsys, str(path))
    assert (code, "not a usable recording" in error) == (1, True)


# ---- two recordings ---------------------------------------------------------


def shared(**counts: int) -> Recording:
    recording = Recording("vm1", 100.0)
    recording.duration_ns = 10**9
    vm, task = recording.vm("vm1"), recording.task(1, 1, "work")
    top = recording.frame("main", "", FrameKind.KERNEL, 1)
    for name, count in counts.items():
        stack = recording.stack([top, recording.frame(name, "", FrameKind.KERNEL, 2)])
        for _ in range(count):
            recording.add(0, vm, 0, task, stack, State.RUNNING, 0)
    return recording


def test_changes_are_told_from_chance(tmp_path: Path) -> None:
    old = shared(parse=4000, hash=5000, lock=990, gone=10)
    new = shared(parse=2000, hash=2520, lock=180, fresh=300)
    save(old, tmp_path / "old")
    save(new, tmp_path / "new")
    found = facts("--diff", str(tmp_path / "old"), str(tmp_path / "new"))
    changes = {entry["function"]: entry for entry in found["functions"]}
    assert changes["lock"]["old_self"] == pytest.approx(0.099)
    assert changes["lock"]["new_self"] == pytest.approx(0.036)
    assert {name: change["noise"] for name, change in changes.items()} == {
        "main": True,
        "hash": True,  # 50.0 % and 50.4 %
        "parse": True,  # 40.0 % and 40.0 %
        "lock": False,
        "fresh": False,
        "gone": False,
    }
    lines = output("--diff", str(tmp_path / "old"), str(tmp_path / "new")).splitlines()
    rows = [line.split() for line in lines if "%" in line][:3]
    assert rows[0] == ["9.90", "%", "3.60", "%", "-6.30", "-6.30", "lock"]
    assert rows[1] == ["0.00", "%", "6.00", "%", "+6.00", "+6.00", "fresh"]
    assert lines[-1] == "3 of 6 functions differ by no more than chance does (95 %)"


def test_chance_is_judged_right() -> None:
    """Of recordings of one and the same thing, one in twenty functions may differ."""
    import random

    dice = random.Random(11)
    names = [f"f{number}" for number in range(20)]
    noisy = all_ = 0
    for _ in range(40):
        trees = []
        for _ in range(2):
            counts = dict.fromkeys(names, 0)
            for name in dice.choices(names, k=1000):
                counts[name] += 1
            tree = CallTree(shared(**counts), View())
            tree.add()
            trees.append(tree)
        for change in compare(*trees):
            all_ += change.function.label in names
            noisy += change.function.label in names and not change.is_noise
    assert 0.02 < noisy / all_ < 0.08
