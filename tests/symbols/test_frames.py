"""Call frames of the file in GDB, on a guest that works on both of its vCPUs."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmgdb.demo.guest import GuestOptions
from kvmgdb.demo.kernel import Kernel as KernelFiles
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.native import UnwindEnd
from kvmgdb.linux.stacks import Unwinder
from kvmgdb.machine.target import parse_target
from kvmgdb.symbols import build_vmlinux
from tests.linux.probed import ProbedGuest
from tests.support import background
from tests.support.gdb import GdbSession
from tests.support.require import requires
from tests.support.server import KvmgdbServer
from tests.symbols.backtraces import backtrace, unwound_by_us

STOPS = 200
VCPUS = 2
INSTRUCTIONS = 130
LOAD_SECONDS = 180.0


class BusyGuest:
    """A guest under load: its server, its kernel, and the kernel's file."""

    def __init__(self, files: KernelFiles, directory: Path, memory: int = 320) -> None:
        options = GuestOptions(name="kvmgdb-busy", memory=memory, append="KVMGDB_LOAD=busy")
        self._guest = ProbedGuest(files, options)
        try:
            machine = parse_target(str(self._guest.pid)).open()
            try:
                self.kernel = find_kernel(machine)
                self.unwinder = Unwinder(self.kernel)
                built = build_vmlinux(self.kernel)
                # 5.10 has no types of those.
                assert set(built.warnings) <= {"no types of per-CPU variables: the kernel has none"}
            finally:
                machine.close()
            self.path = directory / "vmlinux"
            self.path.write_bytes(built.data)
            self.server = KvmgdbServer(str(self._guest.pid))
        except BaseException:
            self._guest.close()
            raise

    @property
    def pid(self) -> int:
        """The process ID of QEMU."""
        return self._guest.pid

    def connect(self, gdb: GdbSession) -> None:
        gdb.cli(f"file {self.path}", LOAD_SECONDS)
        gdb.connect(self.server.address, LOAD_SECONDS)

    def close(self) -> None:
        try:
            self.server.close()
            assert self._guest.linux.makes_progress()
        finally:
            self._guest.close()


@pytest.fixture(scope="session")
def busy(
    linux_kernel: KernelFiles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BusyGuest]:
    guest = BusyGuest(linux_kernel, tmp_path_factory.mktemp("busy"))
    background.share("busy", lambda: guest.pid)
    yield guest
    guest.close()


def check_random_stops(guest: BusyGuest, gdb: GdbSession, stops: int, seed: int) -> None:
    """Every chain has an end that it can have, and the frames of our own unwinder."""
    moments = random.Random(seed)
    in_user_mode = deep = compared = 0
    for _ in range(stops):
        gdb.resume()
        time.sleep(moments.random() * 0.03)
        gdb.interrupt()
        for thread in range(1, VCPUS + 1):
            found = backtrace(gdb, thread)
            problem = found.problem()
            assert problem is None, f"{problem}:\n{found.printed}"
            in_user_mode += found.ends_in_user_mode
            deep += len(found.frames) > 3
            addresses, end = unwound_by_us(gdb, guest.unwinder)
            if end not in (UnwindEnd.COMPLETE, UnwindEnd.USER):
                continue
            assert [frame.ip for frame in found.frames] == addresses, found.printed
            compared += 1
    assert in_user_mode > stops // 4
    assert deep > stops // 10
    assert compared > stops


@requires("qemu", "cc")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_chain_comes_to_its_end(busy: BusyGuest, gdb: GdbSession) -> None:
    busy.connect(gdb)
    check_random_stops(busy, gdb, STOPS, seed=5)


@requires("qemu", "cc")
@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        "asm_sysvec_apic_timer_interrupt",
        "asm_exc_page_fault",
        "__switch_to_asm",
        "entry_SYSCALL_64",
        "syscall_exit_to_user_mode",
        "swapgs_restore_regs_and_return_to_usermode",
    ],
)
def test_every_instruction(busy: BusyGuest, gdb: GdbSession, start: str) -> None:
    """From the first one on: registers are saved, stacks are switched, and a task's
    switch pushes what nothing pops."""
    busy.connect(gdb)
    gdb.cli(f"thbreak *{start}")
    gdb.run_to_stop()
    thread = int(gdb.mi("-thread-info")["current-thread-id"])
    ends = set()
    switched = 0
    for _ in range(INSTRUCTIONS):
        found = backtrace(gdb, thread)
        problem = found.problem()
        assert problem is None, f"{problem}:\n{found.printed}\n{gdb.cli('x/i $pc')}"
        ends.add(found.frames[-1])
        if found.frames[0].function == "__switch_to_asm":
            assert found.frames[1].function in ("__schedule", "ret_from_fork"), found.printed
            ours, _ = unwound_by_us(gdb, busy.unwinder)
            assert [frame.ip for frame in found.frames] == ours, found.printed
            switched += 1
        gdb.run_to_stop("-exec-step-instruction")
    assert switched > 5 or start != "__switch_to_asm"
    if start.startswith("asm_"):
        # It is one entry all the time, and what was interrupted stays where it was.
        assert len(ends) == 1


@requires("qemu", "cc")
@pytest.mark.slow
def test_arguments_and_data_at_a_breakpoint(busy: BusyGuest, gdb: GdbSession) -> None:
    busy.connect(gdb)
    assert gdb.value("init_task.comm").startswith('"swapper/0')
    for cpu in range(VCPUS):
        assert gdb.integer(f"percpu[{cpu}]->runqueues.cpu") == cpu
    gdb.cli("thbreak vfs_write")
    gdb.run_to_stop()
    for name, register in (("file", "rdi"), ("buf", "rsi"), ("count", "rdx"), ("pos", "rcx")):
        assert gdb.integer(name) == gdb.integer(f"${register}")
    assert gdb.integer("file->f_path.dentry->d_inode == file->f_inode") == 1
    thread = int(gdb.mi("-thread-info")["current-thread-id"])
    current = f"percpu[{thread - 1}]->current_task"
    assert gdb.integer(f"{current}->stack") <= gdb.integer("$sp")
    assert gdb.integer("$sp") < gdb.integer(f"{current}->stack") + (16 << 10)
    assert gdb.integer(f"((struct percpu_area *) $gs_base)->current_task == {current}") == 1
    # Past the first instruction nothing tells where an argument is.
    gdb.run_to_stop("-exec-step-instruction")
    assert gdb.value("file") == "<optimized out>"
    gdb.mi("-stack-select-frame 1")
    assert gdb.value("count") == "<optimized out>"
