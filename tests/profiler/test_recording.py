"""Recordings: numbers for names, bounds, and files that may come from anywhere."""

from __future__ import annotations

import random
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from kvmgdb.profiler import recording as module
from kvmgdb.profiler.output import OutputError
from kvmgdb.profiler.recording import (
    MAX_DEPTH,
    NO_VCPU,
    FrameKind,
    Recording,
    Sample,
    State,
    Task,
)
from kvmgdb.profiler.storage import RecordingError, load, save


def example() -> Recording:
    recording = Recording("vm1", rate=99.5, start_ns=1_700_000_000_000_000_000)
    recording.duration_ns = 10**9
    vm = recording.vm("vm1", "Linux version 6.1")
    main = recording.frame("main", "/bin/worker", FrameKind.USER, 0x401000)
    entry = recording.frame("do_syscall_64", "", FrameKind.KERNEL, 0xFFFFFFFF81000000)
    worker = recording.task(10, 11, "worker")
    recording.add(5, vm, 1, worker, recording.stack([main, entry]), State.RUNNING, 60_000)
    recording.add(9, vm, NO_VCPU, worker, recording.stack([main]), State.INTERRUPTIBLE, 0)
    recording.add(9, vm, 0, recording.task(0, 0, "swapper/0"), 0, State.HALTED, 1 << 40)
    recording.counters.missed = 3
    recording.remark("the guest rebooted")
    return recording


def test_samples_are_forgotten() -> None:
    recording = example()
    other = recording.vm("vm2")
    recording.add(9, other, 0, 0, 0, State.RUNNING, 0)
    assert recording.forget(0, 5) == 2
    assert [(row.vm, row.time_ns) for row in recording.samples()] == [(0, 5), (other, 9)]
    assert recording.forget(other, 9) == 0


def test_equal_things_have_one_number() -> None:
    recording = example()
    assert recording.frame("main", "/bin/worker", FrameKind.USER, 0x401000) == 0
    assert recording.frame("main", "/bin/other", FrameKind.USER, 0x401000) == 2
    assert recording.stack([0, 1]) == recording.columns.stack[0]
    assert recording.stack_frames(recording.stack([0, 1, 1])) == [0, 1, 1]
    assert recording.vm("vm1", "Linux version 6.1") == 0
    assert recording.task(10, 11, "renamed") != recording.task(10, 11, "worker")


def test_names_cannot_leave_their_line() -> None:
    recording = Recording("a\x1b[31mb")
    recording.task(1, 1, "evil\n\x1b]0;title\x07")
    recording.frame("x" * 5000, "\u202emodule", FrameKind.USER, 1)
    assert recording.target == "a?[31mb"
    assert recording.tasks == [Task(1, 1, "evil??]0;title?")]
    assert len(recording.frames[0].name) == module.MAX_NAME
    assert recording.frames[0].module == "?module"


def test_a_held_time_saturates() -> None:
    assert example().columns.held_ns[2] == (1 << 32) - 1


def test_too_much_is_said_to_be_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in {
        "MAX_FRAMES": 10,
        "MAX_NODES": 20,
        "MAX_TASKS": 5,
        "MAX_VMS": 2,
        "MAX_SAMPLES": 3,
    }.items():
        monkeypatch.setattr(module, name, limit)
    recording = Recording("vm1")
    for number in range(100):
        frame = recording.frame(f"f{number}", "", FrameKind.KERNEL, number)
        task = recording.task(number, number, "task")
        recording.add(number, 0, 0, task, recording.stack([frame] * 3), State.RUNNING, 0)
    assert [frame.name for frame in recording.frames] == [
        *(f"f{number}" for number in range(9)),
        "[too many different functions]",
    ]
    assert recording.tasks[-1].name == "[too many tasks]"
    assert len(recording.tasks) == 5
    assert len(recording.parents) == 20
    assert (len(recording), recording.counters.dropped) == (3, 97)
    recording.vm("1")
    recording.vm("2")
    with pytest.raises(ValueError, match="no more than 2"):
        recording.vm("3")


def test_a_stack_without_end_is_cut() -> None:
    recording = Recording("vm1")
    frame = recording.frame("again", "", FrameKind.KERNEL, 1)
    assert len(recording.stack_frames(recording.stack([frame] * 10_000))) == MAX_DEPTH


def test_taking_samples_leaves_the_tables() -> None:
    recording = example()
    columns = recording.take_samples()
    assert len(columns.time_ns) == 3
    assert len(recording) == 0
    assert len(recording.frames) == 2


# ---- files ------------------------------------------------------------------


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    recording = example()
    save(recording, tmp_path / "a.kvmprof")
    again = load(tmp_path / "a.kvmprof")
    assert again == recording
    assert next(again.samples()) == Sample(5, 0, 1, 0, 2, State.RUNNING, 60_000)
    # It can be gone on with.
    assert again.frame("main", "/bin/worker", FrameKind.USER, 0x401000) == 0
    assert again.stack([0, 1]) == 2


def test_a_file_written_over_keeps_what_was_there_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.kvmprof"
    save(example(), path)
    before = path.read_bytes()
    random_bytes = random.Random(1)
    large = Recording("vm2")
    frame = large.frame("f", "", FrameKind.KERNEL, 1)
    for _ in range(50_000):
        large.add(random_bytes.getrandbits(63), 0, 0, 0, large.stack([frame]), State.RUNNING, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*a\.kvmprof: File too large"):
            save(large, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_device_is_an_error() -> None:
    with pytest.raises(OutputError, match="cannot write /dev/full: No space left on device"):
        save(example(), Path("/dev/full"))


def test_where_nothing_can_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        save(example(), tmp_path / "no" / "a.kvmprof")
    with pytest.raises(OutputError, match="Is a directory"):
        save(example(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    save(example(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "real") == example()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "does not begin like one"),
        (b"KVMGDBRC", "ends too early"),
        (b"KVMGDBRC" + struct.pack("<I", 2), "version 2, and this kvmgdb reads 1"),
        (b"KVMGDBRC" + struct.pack("<IIQQ", 1, 0, 1 << 40, 5), "said to have 1099511627776 bytes"),
        (b"KVMGDBRC" + struct.pack("<IIQQ", 1, 0, 50, 1 << 60) + b"x", "ends too early"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=problem):
        load(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="No such file"):
        load(tmp_path / "none")


def sections(content: bytes) -> list[bytes]:
    found, place = [], 12
    while place < len(content):
        _, _, packed = struct.unpack_from("<IQQ", content, place)
        found.append(zlib.decompress(content[place + 20 : place + 20 + packed]))
        place += 20 + packed
    return found


def joined(parts: list[bytes]) -> bytes:
    content = b"KVMGDBRC" + struct.pack("<I", 1)
    for part in parts:
        packed = zlib.compress(part)
        content += struct.pack("<IQQ", zlib.crc32(part), len(part), len(packed)) + packed
    return content


FACTS, VMS, TASKS, FRAMES, PARENTS, NODE_FRAMES, TIME, VM, VCPU, TASK, STACK, STATE, HELD = range(
    13
)


@pytest.mark.parametrize(
    ("section", "content", "problem"),
    [
        (FACTS, b"[" * 100_000, "no JSON"),
        (FACTS, b"9" * 100_000, "no JSON"),
        (FACTS, b"[]", "no object"),
        (FACTS, b"{}", "does not say of what"),
        (FACTS, b'{"target": "a", "rate": NaN}', "no rate"),
        (FACTS, b'{"target": "a", "rate": 1, "counters": 5}', "no counters"),
        (VMS, b"name\tbanner\tmore\n", "cannot be read"),
        (VMS, b"a\tb\n" * 5000, "more than 4096 lines"),
        (VMS, b"name\tbanner", "cannot be read"),
        (TASKS, b"-1\t1\tx\n", "a number in a table"),
        (TASKS, b"4294967296\t1\tx\n", "a number is not"),
        (FRAMES, b"f\t\t7\t1\n", "a number is not"),
        (FRAMES, b"\xff\t\t0\t1\n", "no UTF-8"),
        (PARENTS, b"", "no root"),
        (PARENTS, b"abc", "does not end with a number"),
        (PARENTS, struct.pack("<3I", 0, 2, 1), "leads nowhere"),
        (NODE_FRAMES, struct.pack("<3I", 0, 0, 9), "leads nowhere"),
        (TIME, bytes(16), "different lengths"),
        (VM, struct.pack("<3H", 0, 1, 0), "a virtual machine that is not there"),
        (TASK, struct.pack("<3I", 0, 2, 0), "a task that is not there"),
        (STACK, struct.pack("<3I", 0, 3, 0), "a stack that is not there"),
        (STATE, b"\0\0\x08", "a state that is not there"),
    ],
)
def test_what_is_damaged_is_refused(
    tmp_path: Path, section: int, content: bytes, problem: str
) -> None:
    path = tmp_path / "a.kvmprof"
    save(example(), path)
    parts = sections(path.read_bytes())
    assert joined(parts) != joined(parts[:-1])
    parts[section] = content
    path.write_bytes(joined(parts))
    with pytest.raises(RecordingError, match=problem):
        load(path)


def test_a_stack_too_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.kvmprof"
    save(example(), path)
    parts = sections(path.read_bytes())
    parts[PARENTS] = struct.pack("<1000I", 0, *range(999))
    parts[NODE_FRAMES] = bytes(4000)
    path.write_bytes(joined(parts))
    with pytest.raises(RecordingError, match="deeper than 512"):
        load(path)


def test_no_change_of_a_byte_is_more_than_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.kvmprof"
    save(example(), path)
    good = path.read_bytes()
    dice = random.Random(6)
    refused = 0
    for _ in range(500):
        bad = bytearray(good)
        match dice.randrange(3):
            case 0:
                bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
            case 1:
                del bad[dice.randrange(len(bad)) :]
            case _:
                place = dice.randrange(len(bad))
                bad[place:place] = dice.randbytes(dice.randrange(1, 30))
        path.write_bytes(bad)
        try:
            assert load(path) == example()
        except RecordingError:
            refused += 1
    assert refused > 450


def test_ten_minutes_at_one_kilohertz_take_less_than_200_mb(tmp_path: Path) -> None:
    """Two vCPUs, and more different stacks than kernels have: what is left of the
    memory of a process that does nothing else."""
    script = """
import random, re, sys
from pathlib import Path
from kvmgdb.profiler.recording import FrameKind, Recording, State
from kvmgdb.profiler.storage import load, save
def peak():
    # Not ru_maxrss: that of a new program begins with its parent's.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
dice = random.Random(1)
r = Recording("vm1", 1000.0)
vm = r.vm("vm1")
frames = [r.frame(f"function_{n}", "", FrameKind.KERNEL, n) for n in range(5000)]
stacks = [r.stack(dice.choices(frames, k=12)) for _ in range(20_000)]
task = r.task(1, 1, "worker")
for n in range(1_200_000):
    r.add(n * 500_000, vm, n & 1, task, dice.choice(stacks), State.RUNNING, 60_000)
path = Path(sys.argv[1])
save(r, path)
print(len(r), peak() // 1024, path.stat().st_size)
"""
    output = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.kvmprof")],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout
    count, peak_mib, size = map(int, output.split())
    assert count == 1_200_000
    assert peak_mib < 190
    assert size < 30e6
