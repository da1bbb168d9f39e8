"""A machine that stands still, under a debugger of the VMM process."""

from __future__ import annotations

import time
from contextlib import closing

from kvmgdb.machine.target import parse_target
from tests.support.gdb import gdb_batch
from tests.support.require import SYSTEM_GDB, requires_gdb
from tests.vmm.ptrace import VcpuThread
from tests.vmm.vmm import GUESTS, Vmm, symbols

CHAIN = GUESTS / "chain.elf"
# BOOT_INFORMATION of native/vmm/boot.h, where PVH is given it in EBX.
INFORMATION = 0x8000


def test_paused_it_stands_on_the_first_instruction_inside_kvm_run() -> None:
    """Also after `cont`, for as long as the debugger holds the vCPU's thread."""
    entry = (INFORMATION, symbols(CHAIN)["start32"])
    with Vmm("-m", "64M", "-c", "2", "-S", CHAIN) as vmm:
        assert vmm.state() == "paused"
        with VcpuThread(vmm.pid) as thread:
            thread.stop()
            thread.sync_registers(True)
            thread.resume()
            time.sleep(0.1)
            for _ in range(20):
                thread.stop()
                assert thread.registers() == entry
                thread.resume()
            thread.stop()
            before = vmm.memory(0, 0x200000)
            assert vmm.command("cont")["state"] == "running"
            time.sleep(0.3)
            assert thread.registers() == entry
            assert vmm.memory(0, 0x200000) == before
            thread.sync_registers(False)
            thread.resume()
            vmm.wait_progress(CHAIN, 1)
        vmm.wait_progress(CHAIN, 0)


def test_a_machine_that_was_released_but_never_ran_can_be_paused_again() -> None:
    """What a debugger does that took the machine over and leaves it untouched."""
    with Vmm("-m", "64M", "-S", CHAIN) as vmm:
        before = vmm.memory(0, 0x200000)
        with VcpuThread(vmm.pid) as thread:
            thread.stop()
            vmm.command("cont")
            assert vmm.command("stop")["state"] == "paused"
        time.sleep(0.2)
        assert vmm.state() == "paused"
        assert vmm.memory(0, 0x200000) == before
        with VcpuThread(vmm.pid):
            vmm.command("cont")
        vmm.wait_progress(CHAIN)


def test_cont_is_not_lost_however_it_meets_a_debugger() -> None:
    """The kick may come before, while or after the thread is stopped and rewound."""
    with (
        Vmm("-m", "64M", "-S", CHAIN) as vmm,
        VcpuThread(vmm.pid) as thread,
        vmm.connect() as control,
    ):
        for attempt in range(12):
            if attempt % 3 == 0:
                thread.stop()
            control.send(b"cont\n")
            if attempt % 3 == 1:
                thread.stop()
            if attempt % 3 != 2:
                thread.resume()
            vmm.wait_progress(CHAIN)
            control.send(b"stop\n")
            vmm.wait_state("stopped")
            control.send(b"reset\n")
            vmm.wait_state("paused")


def test_stops_by_a_debugger_and_by_command_lose_no_io() -> None:
    image = GUESTS / "io.elf"
    with Vmm("-m", "64M", image) as vmm, VcpuThread(vmm.pid) as thread:
        vmm.wait_progress(image)
        for attempt in range(500):
            thread.stop()
            if attempt % 10 == 0:
                # Parks once the debugger lets it, and comes back to KVM_RUN.
                assert vmm.command("stop")["state"] == "stopping"
                thread.resume()
                vmm.wait_state("stopped")
                vmm.command("cont")
            else:
                thread.resume()
        vmm.wait_progress(image)
        assert vmm.value(image, "io_errors") == 0


@requires_gdb
def test_a_stopped_machine_can_be_read_by_its_ioctls_and_goes_on() -> None:
    show = (
        "set $got = ((int (*)(int, unsigned long, ...))ioctl)"
        "(machine.vcpus[0].fd, 0x8090ae81, $registers)",
        'printf "got %d rsp %lx rip %lx\\n", $got, $registers[6], $registers[16]',
    )
    with Vmm("-m", "64M", "-c", "2", CHAIN) as vmm:
        vmm.wait_progress(CHAIN, 1)
        vmm.command("stop")
        vmm.wait_state("stopped")
        output = gdb_batch(
            SYSTEM_GDB,
            f"attach {vmm.pid}",
            "set scheduler-locking on",
            "set $registers = (unsigned long *)((void *(*)(unsigned long))malloc)(144)",
            *show,
            *show,
            "detach",
        ).text
        lines = [line for line in output.splitlines() if line.startswith("got 0 ")]
        assert len(lines) == 2, output
        assert lines[0] == lines[1]
        assert vmm.state() == "stopped"
        vmm.command("cont")
        vmm.wait_progress(CHAIN, 0)
        vmm.wait_progress(CHAIN, 1)


def test_what_is_said_of_a_machine_that_waits() -> None:
    """It holds its vCPUs inside KVM_RUN, where an idle guest's are too: it is asked."""
    with Vmm("-m", "64M", "-c", "2", "-S", CHAIN) as vmm:
        with closing(parse_target(str(vmm.pid)).open()) as machine:
            assert machine.info().state == "paused (by its VMM: paused)"
            machine.stop()
            assert machine.vcpus[0].paging() is not None
        vmm.command("cont")
        with closing(parse_target(str(vmm.pid)).open()) as machine:
            assert machine.info().state == "running"
