"""What is written in each format, read again by readers that are not ours."""

from __future__ import annotations

import gzip
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest

from kvmgdb.errors import UsageError
from kvmgdb.profiler import formats
from kvmgdb.profiler.output import OutputError
from kvmgdb.profiler.recording import FrameKind, Recording, State
from kvmgdb.profiler.storage import load
from kvmgdb.profiler.view import Root, View
from tests.profiler.recordings import IDLE, SHARES, STACKS, TOTAL, known, sleepers
from tests.support.require import SPEEDSCOPE, requires

NAMES = {
    "html": "a.html",
    "svg": "a.svg",
    "folded": "a.folded",
    "speedscope": "a.speedscope.json",
    "pprof": "a.pb.gz",
    "firefox": "a.firefox.json",
    "perf": "a.perf",
}


def written(recording: Recording, directory: Path, name: str, view: View | None = None) -> Path:
    path = directory / NAMES[name]
    formats.write(recording, path, name, view)
    return path


# ---- which format -----------------------------------------------------------


@pytest.mark.parametrize(("name", "file"), NAMES.items())
def test_a_file_name_says_its_format(name: str, file: str) -> None:
    assert formats.format_of(Path(file.upper())) == name


def test_a_name_that_says_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a\.json does not say"):
        formats.format_of(Path("a.json"))
    with pytest.raises(UsageError, match="no format flame"):
        formats.format_of(Path("a.html"), "flame")
    assert formats.format_of(Path("a.txt"), "folded") == "folded"


def test_the_own_format_keeps_all(tmp_path: Path) -> None:
    formats.write(known(), tmp_path / "a.kvmprof", formats.OWN, View(vcpu=0))
    assert load(tmp_path / "a.kvmprof") == known()


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_written_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="No space left"):
        formats.write(known(), Path("/dev/full"), name)
    with pytest.raises(OutputError, match="No such file"):
        formats.write(known(), tmp_path / "none" / "a", name)


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_without_samples_can_be_written(tmp_path: Path, name: str) -> None:
    assert written(Recording("vm1"), tmp_path, name).exists()


@pytest.mark.parametrize("name", NAMES)
def test_the_deepest_stack_can_be_written(tmp_path: Path, name: str) -> None:
    recording = Recording("vm1", 100.0)
    frames = [recording.frame(f"f{n}", "", FrameKind.KERNEL, n) for n in range(512)]
    vm, task = recording.vm("vm1"), recording.task(1, 1, "deep")
    recording.add(0, vm, 0, task, recording.stack(frames), State.RUNNING, 0)
    path = written(recording, tmp_path, name, View(by=(Root.VM, Root.VCPU, Root.TASK)))
    content = gzip.decompress(path.read_bytes()) if name == "pprof" else path.read_bytes()
    assert b"f511" in content


# ---- folded stacks ----------------------------------------------------------


def folded(path: Path) -> Counter[tuple[str, ...]]:
    """As flamegraph.pl reads it: all up to the last space is the stack."""
    found: Counter[tuple[str, ...]] = Counter()
    for line in path.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        found[tuple(stack.split(";"))] += int(count)
    return found


def test_folded_stacks_count_right(tmp_path: Path) -> None:
    stacks = folded(written(known(), tmp_path, "folded"))
    assert stacks.total() == TOTAL
    assert stacks["_start", "main", "compute:all", "memcpy"] == 400
    assert stacks["_start", "main", "again", "again"] == 120
    assert stacks["0xdead000",] == 80
    for name, (total, own) in SHARES.items():
        function = name.replace(";", ":")
        assert sum(count for stack, count in stacks.items() if function in stack) == total
        assert sum(count for stack, count in stacks.items() if stack[-1] == function) == own


def test_roots_and_selections(tmp_path: Path) -> None:
    view = View(by=(Root.VM, Root.VCPU, Root.TASK, Root.STATE), idle=True)
    stacks = folded(written(known(), tmp_path, "folded", view))
    assert stacks["vm & <1>", "vCPU 1", "swapper/0 (0)", "halted", "[idle]"] == IDLE
    assert stacks["vm & <1>", "vCPU 0", "work (100)", "running", "0xdead000"] == 40
    for choice, count in (
        (View(vcpu=0), TOTAL // 2),
        (View(vcpu=7), 0),
        (View(task="work er"), TOTAL // 2),
        (View(task="201"), TOTAL // 2),
        (View(task="0", idle=True), IDLE),
    ):
        assert folded(written(known(), tmp_path, "folded", choice)).total() == count


def test_sleeping_tasks_are_told_apart(tmp_path: Path) -> None:
    view = View(by=(Root.STATE, Root.VCPU))
    stacks = folded(written(sleepers(), tmp_path, "folded", view))
    assert stacks == {
        ("sleeping", "no vCPU", "do_wait", "schedule"): 1,
        ("sleeping, uninterruptible", "no vCPU", "do_wait", "schedule"): 1,
    }


# ---- perf script ------------------------------------------------------------


def test_perf_script_gives_each_sample(tmp_path: Path) -> None:
    records = written(known(), tmp_path, "perf").read_text().split("\n\n")
    assert records.pop() == ""
    assert len(records) == TOTAL
    assert records[601].splitlines() == [
        "work er 200/201 [001] 1795000003.000000: 10000000 cpu-clock:",
        "\t          400000 memcpy+0x0 (/lib/libc.so.6)".replace(
            "400000", f"{0x400000 + 16 * sum(b'memcpy'):x}"
        ),
        f"\t          {0x400000 + 16 * sum(b'compute;all'):x} compute;all+0x0 (/bin/work)",
        f"\t          {0x400000 + 16 * sum(b'main'):x} main+0x0 (/bin/work)",
        f"\t          {0x400000 + 16 * sum(b'_start'):x} _start+0x0 (/bin/work)",
    ]
    assert any("ext4_readpage+0x0 ([ext4])" in record for record in records)
    assert any("[unknown]+0x0 (/lib/libnosyms.so)" in record for record in records)


def test_samples_are_put_in_the_order_of_time(tmp_path: Path) -> None:
    recording = Recording("vm1", 100.0)
    vm, task = recording.vm("vm1"), recording.task(1, 1, "work")
    for time_ns in (3, 1, 2):
        stack = recording.stack([recording.frame(f"at{time_ns}", "", FrameKind.KERNEL, 1)])
        recording.add(time_ns * 1000, vm, 0, task, stack, State.RUNNING, 0)
    lines = written(recording, tmp_path, "perf").read_text().splitlines()
    assert [line.split()[1] for line in lines if "at" in line] == ["at1+0x0", "at2+0x0", "at3+0x0"]


# ---- JSON -------------------------------------------------------------------


@requires("speedscope")
@pytest.mark.parametrize("recording", [known(), sleepers(), Recording("vm1")])
def test_speedscope_files_fit_its_schema(tmp_path: Path, recording: Recording) -> None:
    schema = json.loads((SPEEDSCOPE / "file-format-schema.json").read_text())
    validate = fastjsonschema.compile({**schema, "$ref": "#/definitions/FileFormat.File"})
    content = json.loads(written(recording, tmp_path, "speedscope").read_text())
    validate(content)
    with pytest.raises(fastjsonschema.JsonSchemaException):
        validate({**content, "profiles": [{"type": "sampled"}]})


def test_speedscope_files_keep_the_order(tmp_path: Path) -> None:
    content = json.loads(written(known(), tmp_path, "speedscope").read_text())
    frames = [frame["name"] for frame in content["shared"]["frames"]]
    assert [profile["name"] for profile in content["profiles"]] == ["vCPU 0", "vCPU 1"]
    for profile in content["profiles"]:
        assert profile["unit"] == "nanoseconds"
        assert profile["endValue"] == sum(profile["weights"]) == 10**10
        stacks = [[frames[place] for place in sample] for sample in profile["samples"]]
        # Equal neighbours are one sample that lasts.
        assert [weight // 10**7 for weight in profile["weights"]] == list(STACKS)
        assert stacks[1] == ["_start", "main", "compute;all", "memcpy"]


def _equal_lengths(table: dict[str, Any]) -> int:
    lengths = {len(column) for column in table.values() if isinstance(column, list)}
    assert lengths == {table["length"]}
    return int(table["length"])


def test_firefox_files_hang_together(tmp_path: Path) -> None:
    """By the types of the format, version 48: columns of equal length, numbers that
    lead somewhere, callers before what they call."""
    content = json.loads(written(known(), tmp_path, "firefox", View(idle=True)).read_text())
    meta = content["meta"]
    assert (meta["preprocessedProfileVersion"], meta["interval"]) == (48, 10.0)
    assert meta["startTime"] == 1_795_000_000_000
    assert [thread["name"] for thread in content["threads"]] == ["vCPU 0", "vCPU 1"]
    shares: Counter[str] = Counter()
    for thread in content["threads"]:
        strings = thread["stringArray"]
        stacks, frames, functions = (
            thread[name] for name in ("stackTable", "frameTable", "funcTable")
        )
        for name in ("samples", "resourceTable", "nativeSymbols", "markers"):
            _equal_lengths(thread[name])
        categories = set(range(len(meta["categories"])))
        for number in range(_equal_lengths(stacks)):
            assert stacks["prefix"][number] is None or 0 <= stacks["prefix"][number] < number
        assert set(stacks["frame"]) == set(range(_equal_lengths(frames)))
        assert set(frames["func"]) == set(range(_equal_lengths(functions)))
        assert set(stacks["category"]) | set(frames["category"]) <= categories
        assert set(functions["resource"]) <= {-1, *range(thread["resourceTable"]["length"])}
        assert len(set(strings)) == len(strings)
        for stack in thread["samples"]["stack"]:
            names = set()
            while stack is not None:
                names.add(strings[functions["name"][frames["func"][stacks["frame"][stack]]]])
                stack = stacks["prefix"][stack]
            shares.update(names)
    assert {name: shares[name] for name in SHARES} == {
        name: total for name, (total, _) in SHARES.items()
    }
    assert shares["[idle]"] == IDLE


# ---- pictures ---------------------------------------------------------------


def test_the_picture_is_to_scale(tmp_path: Path) -> None:
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.parse(written(known(), tmp_path, "svg")).getroot()
    boxes = {}
    for group in root.iter(f"{svg}g"):
        title, rect = group.find(f"{svg}title"), group.find(f"{svg}rect")
        assert title is not None
        assert rect is not None
        boxes[(title.text or "").rsplit(": ", 1)[0]] = rect.attrib
    whole = float(boxes["all"]["width"])
    for name, (total, _) in SHARES.items():
        width = float(boxes[name]["width"])
        assert width / whole == pytest.approx(total / TOTAL, abs=2e-5), name
        assert float(boxes[name]["x"]) >= float(boxes["all"]["x"])
        assert float(boxes[name]["x"]) + width <= float(boxes["all"]["x"]) + whole + 0.02
    # What is called is drawn above its caller.
    assert float(boxes["memcpy"]["y"]) < float(boxes["compute;all"]["y"])
