"""A guest that ends the wrong way stays there to be looked at."""

from __future__ import annotations

import time

from tests.support.gdb import gdb_batch
from tests.support.require import SYSTEM_GDB, requires_gdb
from tests.vmm.vmm import GUESTS, SECONDS, Vmm, run, symbols

TRIPLE = GUESTS / "triple.elf"
INT3 = GUESTS / "int3.elf"
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_INTERNAL_ERROR = 17


def test_a_triple_fault_is_told_in_words_and_keeps_the_machine() -> None:
    with Vmm("-m", "64M", "-c", "2", TRIPLE) as vmm, vmm.connect() as control:
        event = control.wait_event("faulted")
        fault = event["fault"]
        assert fault["vcpu"] == 0
        assert fault["exit_reason"] == KVM_EXIT_SHUTDOWN
        assert fault["name"] == "KVM_EXIT_SHUTDOWN"
        assert fault["text"].startswith("triple fault")
        assert int(fault["rip"], 16) == symbols(TRIPLE)["triple_fault_here"]
        assert fault["resumable"] is False
        assert b"triple fault" in vmm.errors
        assert vmm.process.poll() is None
        # The other vCPU stands still too.
        before = vmm.value(TRIPLE, "progress", 1)
        time.sleep(0.1)
        assert vmm.value(TRIPLE, "progress", 1) == before


@requires_gdb
def test_the_registers_of_the_moment_and_kvm_run_are_there() -> None:
    with Vmm("-m", "64M", "-c", "2", TRIPLE) as vmm:
        vmm.wait_state("faulted")
        output = gdb_batch(
            SYSTEM_GDB,
            f"attach {vmm.pid}",
            "set scheduler-locking on",
            "set $registers = (unsigned long *)((void *(*)(unsigned long))malloc)(144)",
            "print ((int (*)(int, unsigned long, ...))ioctl)"
            "(machine.vcpus[0].fd, 0x8090ae81, $registers)",
            'printf "r12 %lx rip %lx\\n", $registers[12], $registers[16]',
            'printf "exit %d\\n", machine.vcpus[0].run->exit_reason',
            "detach",
        ).text
        rip = symbols(TRIPLE)["triple_fault_here"]
        assert f"r12 1234567812345678 rip {rip:x}" in output
        assert f"exit {KVM_EXIT_SHUTDOWN}" in output
        assert vmm.state() == "faulted"


def test_after_a_triple_fault_only_reset_goes_on() -> None:
    with Vmm("-m", "64M", "-c", "2", TRIPLE) as vmm:
        vmm.wait_state("faulted")
        answer = vmm.command("cont")
        assert answer["ok"] is False
        assert "use reset" in answer["error"]
        vmm.command("reset")
        status = vmm.wait_state("paused")
        assert status["fault"] is None
        vmm.command("cont")
        assert vmm.wait_state("faulted")["resets"] == 1
        assert vmm.output.count(b"triple fault now") == 2


def test_exit_on_fault_ends_with_status_6() -> None:
    result = run("-m", "64M", "--exit-on-fault", TRIPLE)
    assert result.returncode == 6
    assert result.stdout == "triple: 1 vCPUs\ntriple fault now\n"
    assert "triple fault" in result.stderr
    assert "kept" not in result.stderr


def test_an_int3_of_the_guest_reaches_it_or_is_named() -> None:
    """KVM that emulates cannot execute INT3 and gives up; any other delivers it."""
    with Vmm("-m", "64M", INT3) as vmm:
        deadline = time.monotonic() + SECONDS
        while vmm.state() == "running" and vmm.value(INT3, "breakpoints") < 10:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if vmm.value(INT3, "breakpoints"):
            assert vmm.state() == "running"
            return
        fault = vmm.wait_state("faulted")["fault"]
        assert fault["exit_reason"] == KVM_EXIT_INTERNAL_ERROR
        assert int(fault["rip"], 16) == symbols(INT3)["own_int3"]
        assert "bytes cc" in fault["text"]
        assert fault["resumable"] is True
        # Nothing was mended: it comes back to the same place.
        assert vmm.command("cont")["ok"]
        again = vmm.wait_state("faulted")["fault"]
        assert again["rip"] == fault["rip"]
        assert vmm.value(INT3, "progress") == 1000
