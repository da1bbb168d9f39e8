"""A recording whose shares are known, and whose names are meant to do harm."""

from __future__ import annotations

from kvmgdb.profiler.recording import NO_VCPU, FrameKind, Recording, State

EVIL = '</script><script>document.title="evil"</script>'

# Samples of each stack on vCPU 0; vCPU 1 has the same. Frames are a function, its
# kind and what it belongs to.
_USER, _KERNEL, _MODULE = FrameKind.USER, FrameKind.KERNEL, FrameKind.MODULE
_MAIN = [("_start", _USER, "/bin/work"), ("main", _USER, "/bin/work")]
_SYSCALL = [*_MAIN, ("entry_SYSCALL_64", _KERNEL, ""), ("do_syscall_64", _KERNEL, "")]
STACKS = {
    300: [*_MAIN, ("compute;all", _USER, "/bin/work")],
    200: [*_MAIN, ("compute;all", _USER, "/bin/work"), ("memcpy", _USER, "/lib/libc.so.6")],
    150: [*_SYSCALL, ("vfs_read", _KERNEL, "")],
    100: [*_SYSCALL, ("vfs_read", _KERNEL, ""), ("ext4_readpage", _MODULE, "ext4")],
    90: [*_MAIN, (EVIL, _USER, "/bin/work")],
    60: [*_MAIN, ("again", _USER, "/bin/work"), ("again", _USER, "/bin/work")],
    # No symbol: a file is known, or nothing.
    50: [*_MAIN, ("", _USER, "/lib/libnosyms.so")],
    40: [("", FrameKind.UNKNOWN, "")],
    10: [],
}
PER_VCPU = sum(STACKS)
TOTAL = 2 * PER_VCPU
IDLE = 500

# (samples in it or what it calls, samples in itself), of both vCPUs
SHARES = {
    "main": (2 * 950, 0),
    "compute;all": (2 * 500, 2 * 300),
    "memcpy": (2 * 200, 2 * 200),
    "do_syscall_64": (2 * 250, 0),
    "vfs_read": (2 * 250, 2 * 150),
    "ext4_readpage [ext4]": (2 * 100, 2 * 100),
    EVIL: (2 * 90, 2 * 90),
    "again": (2 * 60, 2 * 60),
    "[libnosyms.so]": (2 * 50, 2 * 50),
    "0xdead000": (2 * 40, 2 * 40),
    "[no stack]": (2 * 10, 2 * 10),
}


def known() -> Recording:
    """At 100 Hz: 1,000 samples of each of two vCPUs that run, and 500 of a halted
    one, in 10 s."""
    recording = Recording("vm & <1>", rate=100.0, start_ns=1_795_000_000 * 10**9)
    recording.duration_ns = 10 * 10**9
    vm = recording.vm("vm & <1>", "Linux version 6.1.0-28-cloud-amd64")
    work = [recording.task(100, 100, "work"), recording.task(200, 201, "work er")]
    swapper = recording.task(0, 0, "swapper/0")
    numbers = []
    for count, frames in STACKS.items():
        ids = [
            recording.frame(name, module, kind, _address(name, module))
            for name, kind, module in frames
        ]
        numbers += [recording.stack(ids)] * count
    time_ns = 0
    for stack in numbers:
        for vcpu in (0, 1):
            recording.add(time_ns, vm, vcpu, work[vcpu], stack, State.RUNNING, 50_000)
        time_ns += 10**7
    for number in range(IDLE):
        recording.add(number * 10**7, vm, 1, swapper, 0, State.HALTED, 0)
    recording.counters.broken = 3
    return recording


def _address(name: str, module: str) -> int:
    if not name and not module:
        return 0xDEAD000
    return 0x400000 + 16 * sum(name.encode())


def sleepers() -> Recording:
    """A snapshot of tasks that do not run: not sampled by time."""
    recording = Recording("vm1")
    vm = recording.vm("vm1")
    schedule = recording.frame("schedule", "", FrameKind.KERNEL, 0xFFFFFFFF81000000)
    wait = recording.frame("do_wait", "", FrameKind.KERNEL, 0xFFFFFFFF81000100)
    task = recording.task(7, 7, "init")
    stack = recording.stack([wait, schedule])
    recording.add(0, vm, NO_VCPU, task, stack, State.INTERRUPTIBLE, 0)
    recording.add(0, vm, NO_VCPU, task, stack, State.UNINTERRUPTIBLE, 0)
    return recording
