"""Profiles of stock Linux: workers, kernel paths and interrupts under their names."""

from __future__ import annotations

import math
import stat
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kvmgdb.demo.cache import cache_directory
from kvmgdb.demo.guest import GuestOptions, LinuxGuest
from kvmgdb.demo.initramfs import FLAGS, Entry, build_initramfs, cpio
from kvmgdb.demo.kernel import Kernel, fetch_kernel
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.mappings import Mapping, Mappings
from kvmgdb.linux.tasks import list_tasks
from kvmgdb.machine.target import parse_target
from kvmgdb.profiler.native import RUNNING
from kvmgdb.profiler.off_cpu import record_sleeping
from kvmgdb.profiler.recording import NO_VCPU, FrameKind, Recording, State
from kvmgdb.profiler.session import RebootedError, Session, Wanted
from tests.guests.linux.fixtures import StartGuest
from tests.kvm.adopted import linux_under_kvm
from tests.linux.probed import module_files
from tests.profiler.sampled import Sampled, holds, sample
from tests.support.qemu import qmp
from tests.support.require import requires

pytestmark = requires("qemu", "cc")

TIMER = ["asm_sysvec_apic_timer_interrupt", "sysvec_apic_timer_interrupt"]
# What the demo's workers do (kvmgdb/demo/init.c): their own function, and one of the
# kernel that they reach.
WORKERS = {
    "compute": ("compute", TIMER[1]),
    "syscalls": ("call", "do_syscall_64"),
    "faults": ("fault", "asm_exc_page_fault"),
    "pipes": ("talk", "do_syscall_64"),
}
SAMPLES = 1000


@pytest.fixture(scope="module")
def kernel(linux_kernel: Kernel) -> Kernel:
    return linux_kernel


def _seen(sampled: Sampled) -> dict[str, set[str]]:
    """The functions in which each task was met."""
    seen: dict[str, set[str]] = defaultdict(set)
    for task, stack in sampled.stacks():
        seen[task.name] |= {frame.name for frame in stack}
    return seen


def _assert_whole(sampled: Sampled) -> None:
    """Fewer than 0.5 % of the stacks are broken, as far as so few samples can tell."""
    expected = 0.005 * len(sampled.recording)
    broken = sampled.session.recording.counters.broken
    assert broken <= expected + 4 * math.sqrt(expected), sampled.session.broken


@requires("kvm")
def test_under_kvm(kernel: Kernel) -> None:
    workers = ["compute-1", "compute-2", "compute-3"]

    def enough(sampled: Sampled) -> bool:
        seen = _seen(sampled)
        return len(sampled.recording) >= SAMPLES and all(
            {"guest_main", TIMER[1]} <= seen[worker] for worker in workers
        )

    with linux_under_kvm(kernel) as guest:
        with closing(parse_target(str(guest.pid)).open()) as machine:
            sampled = sample(machine, enough, 400.0)
        seen = _seen(sampled)
        for worker in workers:
            assert {"guest_main", TIMER[1]} <= seen[worker], seen
        _assert_whole(sampled)
        for task, stack in sampled.stacks():
            names = [frame.name for frame in stack]
            if task.name in workers and TIMER[1] in names:
                assert names[0] == "guest_main"
                assert stack[0].kind is FrameKind.USER
                assert stack[0].module == "/init"
                assert holds(names, TIMER), names
                break
        guest.assert_progress()


@pytest.fixture(scope="module")
def busy(kernel: Kernel) -> Iterator[LinuxGuest]:
    options = GuestOptions(name="kvmgdb-profiled", append="KVMGDB_LOAD=busy")
    with LinuxGuest(kernel, options) as guest:
        guest.wait_ready()
        yield guest


def test_under_tcg(busy: LinuxGuest) -> None:
    def enough(sampled: Sampled) -> bool:
        seen = _seen(sampled)
        return len(sampled.recording) >= SAMPLES and all(
            set(wanted) <= seen[worker] for worker, wanted in WORKERS.items()
        )

    with closing(parse_target(str(busy.pid)).open()) as machine:
        sampled = sample(machine, enough, 100.0)
    seen = _seen(sampled)
    for worker, wanted in WORKERS.items():
        assert set(wanted) <= seen[worker], (worker, seen[worker])
    _assert_whole(sampled)
    assert busy.makes_progress()


def test_frames_and_tasks_that_are_asked_for(busy: LinuxGuest) -> None:
    with closing(parse_target(str(busy.pid)).open()) as machine:
        kernel_only = sample(machine, 40, 100.0, Wanted(user=False, task="syscalls"))
        user_only = sample(machine, 40, 100.0, Wanted(kernel=False, task="syscalls"))
    kinds = {frame.kind for _, stack in kernel_only.stacks() for frame in stack}
    assert kinds <= {FrameKind.KERNEL, FrameKind.MODULE}
    assert {task.name for task, _ in kernel_only.stacks()} == {"syscalls"}
    assert {frame.name for _, stack in user_only.stacks() for frame in stack} <= {
        "call",
        "guest_main",
        "syscall3",
        "syscall6",
    }


def test_programs_are_read_from_the_page_cache(busy: LinuxGuest) -> None:
    """The file that a task runs is, byte for byte, the one that was given to the guest."""
    with closing(parse_target(str(busy.pid)).open()) as machine:
        kernel = find_kernel(machine)
        init = next(task for task in list_tasks(kernel) if task.pid == 1)
        mm = init.object.member("mm")
        code = mm.member("start_code").integer()
        mappings = Mappings(kernel)
        mapping = mappings.find(mm.integer(), code)
        assert isinstance(mapping, Mapping)
        assert mapping.start <= code < mapping.end
        assert mapping.file is not None
        assert mapping.file.path == "/init"
        file = mapping.file.open()
        assert file.size > 4096
        assert file.read(0, file.size) in build_initramfs().read_bytes()
        # What no mapping has is none.
        for address in (0, 0x1000, (1 << 47) - 1, 1 << 63):
            hole = mappings.find(mm.integer(), address)
            assert isinstance(hole, range)
            assert address in hole
            assert code not in hole


def test_sleeping_tasks(busy: LinuxGuest) -> None:
    with closing(parse_target(str(busy.pid)).open()) as machine:
        recording = Recording("test")
        record_sleeping(machine, recording, "test")
    rows = list(recording.samples())
    tasks = {recording.tasks[row.task].name: row for row in rows}
    assert {"kthreadd", "init"} & set(tasks)
    row = tasks["kthreadd"]
    assert State(row.state) is State.INTERRUPTIBLE
    assert row.vcpu == NO_VCPU
    names = [recording.frames[frame].name for frame in recording.stack_frames(row.stack)]
    assert "kthreadd" in names
    assert names[-1] in ("schedule", "__schedule"), names
    assert recording.counters.broken == 0
    # init sleeps in a system call: the function that made it is its own.
    init = next(row for row in rows if recording.tasks[row.task].pid == 1)
    root = recording.frames[recording.stack_frames(init.stack)[0]]
    assert root.kind is FrameKind.USER
    assert root.module == "/init"
    assert root.name


def _run_until(session: Session, end: float) -> None:
    while time.monotonic() < end:
        session.wait(0.2)
        session.drain()


@pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
def test_a_reboot_ends_the_recording(
    start_linux_guest: StartGuest, tmp_path: Path, told: bool
) -> None:
    """QEMU's monitor tells of it; through a bare stub only what the vCPUs run can tell,
    and without KASLR that is the same kernel at the same place. No sample is from the
    new one, whose names we do not know."""
    monitor, stub = tmp_path / "monitor", tmp_path / "stub"
    arguments = ["-action", "reboot=reset", "-qmp", f"unix:{monitor},server=on,wait=off"]
    if not told:
        arguments += ["-gdb", f"unix:{stub},server=on,wait=off"]
    append = "KVMGDB_LOAD=busy" if told else "KVMGDB_LOAD=busy nokaslr"
    guest = start_linux_guest(append=append, arguments=tuple(arguments))
    recording = Recording("test", 50.0)
    with closing(parse_target(str(guest.pid) if told else f"rsp:unix:{stub}").open()) as machine:
        session = Session(machine, recording, "test", 50.0, Wanted())
        session.begin()
        _run_until(session, time.monotonic() + 3.0)  # that is no reboot
        assert session.states[RUNNING]
        assert session._look() is not None
        reset_ns = time.monotonic_ns() - session.begin_ns
        qmp(monitor, "system_reset")
        with pytest.raises(RebootedError):
            _run_until(session, time.monotonic() + 120)
        session.close()
    assert len(recording)
    assert max(recording.columns.time_ns) <= reset_ns
    assert any("started again" in remark for remark in recording.remarks)


def test_a_module_that_is_loaded_meanwhile(
    kernel: Kernel, start_linux_guest: StartGuest, tmp_path: Path
) -> None:
    """Its frames have names, and the stacks that go through it their ends."""
    program, initrd = tmp_path / "program", tmp_path / "initrd"
    source = Path(__file__).parent / "guests" / "loop_user.c"
    subprocess.run(["gcc", *FLAGS, "-o", str(program), str(source)], check=True, timeout=60)
    (module,) = module_files(kernel, ["kernel/drivers/block/loop.ko"])
    files = {"loop_user": program.read_bytes(), "loop.ko": module}
    archive = cpio([Entry(name, stat.S_IFREG | 0o755, content) for name, content in files.items()])
    initrd.write_bytes(build_initramfs().read_bytes() + archive)
    arguments = ("-initrd", str(initrd))
    guest = start_linux_guest(kernel, append="rdinit=/loop_user", arguments=arguments)
    caller = "loop_control_ioctl"

    def enough(sampled: Sampled) -> bool:
        if not loaded and len(sampled.recording) >= 50:
            assert "loop" not in {frame.module for _, stack in sampled.stacks() for frame in stack}
            guest.load_module("/loop.ko")
            loaded.append(True)
        return sampled.names()[caller] >= 5

    loaded: list[bool] = []
    with closing(parse_target(str(guest.pid)).open()) as machine:
        sampled = sample(machine, enough, 100.0)
    assert sampled.names()[caller] >= 5
    for task, stack in sampled.stacks():
        names = [frame.name for frame in stack]
        if caller in names:
            assert task.name == "loop-user"
            assert stack[names.index(caller)].module == "loop"
            assert stack[0].module == "/loop_user"
            assert holds(names, ["do_syscall_64", "__x64_sys_ioctl", caller]), names
    _assert_whole(sampled)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "suite"),
    [("linux-image-cloud-amd64", "bullseye"), ("linux-image-cloud-amd64", "trixie")],
)
def test_other_kernels(start_linux_guest: StartGuest, package: str, suite: str) -> None:
    """Mappings were a list until 6.0; interrupts' stacks moved, too."""
    if not (cache_directory("kernels") / "by-package" / f"{package}@{suite}").exists():
        pytest.skip(f"the kernel {package}@{suite} is not in the cache")
    guest = start_linux_guest(fetch_kernel(package, suite), append="KVMGDB_LOAD=busy")

    def enough(sampled: Sampled) -> bool:
        return len(sampled.recording) >= 300 and "compute" in _seen(sampled)["compute"]

    with closing(parse_target(str(guest.pid)).open()) as machine:
        sampled = sample(machine, enough, 100.0)
    assert "compute" in _seen(sampled)["compute"], _seen(sampled)
    _assert_whole(sampled)
