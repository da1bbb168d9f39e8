"""The freestanding guests run: vCPUs, timers, port I/O, reset."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vmm.vmm import GUESTS, Vmm, run, symbols


@pytest.mark.parametrize("name", ["chain.elf", "chain.mb", "halt.elf"])
@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_every_vcpu_makes_progress_and_has_its_timer(name: str, cpus: int) -> None:
    image = GUESTS / name
    with Vmm("-m", "64M", "-c", str(cpus), image) as vmm:
        vmm.wait_output(f"{image.stem}: {cpus} vCPUs\n".encode())
        for cpu in range(cpus):
            vmm.wait_progress(image, cpu)
            vmm.wait_progress(image, cpu, symbol="ticks")
        assert vmm.value(image, "cpus_online", size=4) == cpus


def test_more_than_4_gib_of_memory_work() -> None:
    image = GUESTS / "chain.elf"
    with Vmm("-m", "5G", "-c", "2", image) as vmm:
        vmm.wait_progress(image, 1)


def test_each_port_and_mmio_access_happens_once() -> None:
    image = GUESTS / "io.elf"
    with Vmm("-m", "64M", image) as vmm:
        vmm.wait_progress(image, steps=100)
        for _ in range(20):
            vmm.command("stop")
            vmm.wait_state("stopped")
            before = vmm.value(image, "progress")
            vmm.command("cont")
            vmm.wait_progress(image, steps=2)
            assert vmm.value(image, "progress") > before
        assert vmm.value(image, "io_errors") == 0


def test_three_ways_of_reset_start_again_from_the_entry() -> None:
    result = run("-m", "64M", "-c", "2", GUESTS / "reset.elf", seconds=90)
    boots = "".join(f"reset: 2 vCPUs\nboot {n}\n" for n in range(1, 5))
    assert result.stdout == boots
    assert result.returncode == 0x21 << 1 | 1


def test_what_the_guest_does_not_touch_costs_no_memory() -> None:
    image = GUESTS / "halt.elf"
    with Vmm("-m", "2G", image) as vmm:
        vmm.wait_progress(image)
        blocks = next(
            (
                fd.stat().st_blocks
                for fd in Path(f"/proc/{vmm.pid}/fd").iterdir()
                if str(fd.readlink()).startswith("/memfd:kvmgdb-ram")
            ),
        )
        assert blocks * 512 < 4 << 20


def test_symbols_are_at_the_same_addresses_in_both_images() -> None:
    elf, multiboot = symbols(GUESTS / "chain.elf"), symbols(GUESTS / "chain.mb")
    shared = {"progress", "ticks", "chain_leaf", "chain_a", "guest_main", "timer_entry", "start32"}
    assert {name: elf[name] for name in shared} == {name: multiboot[name] for name in shared}
