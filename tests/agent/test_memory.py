"""Where guest RAM lies, as KVM knows it and as it is guessed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmgdb.machine.agent import Agent, AgentRegion
from tests.agent.vm import LOAD, NOBODY, RAM, Vm
from tests.support.require import requires

pytestmark = requires("kvm", "cc")
Start = Callable[..., Vm]
GIB = 1 << 30


def region_at(regions: list[AgentRegion], gpa: int) -> AgentRegion:
    found = [region for region in regions if region.gpa <= gpa < region.gpa + region.size]
    assert len(found) == 1, regions
    return found[0]


def close_all(regions: list[AgentRegion]) -> None:
    for region in regions:
        if region.fd >= 0:
            os.close(region.fd)


def read(agent: Agent, region: AgentRegion, gpa: int, size: int) -> bytes:
    inside = gpa - region.gpa
    if region.fd >= 0:
        return os.pread(region.fd, size, region.offset + inside)
    return os.pread(agent.memory_fd, size, region.hva + inside)


@pytest.mark.parametrize(
    ("kind", "options", "shared"),
    [
        pytest.param("plain", (), False, id="plain"),
        pytest.param("plain", ("memfd",), True, id="plain-memfd"),
        pytest.param("qemu", (), False, id="qemu", marks=requires("qemu")),
        pytest.param("qemu", ("-machine", "q35"), False, id="qemu-q35", marks=requires("qemu")),
        pytest.param(
            "qemu",
            (
                *("-object", "memory-backend-memfd,id=ram,size=64M,share=on"),
                *("-machine", "memory-backend=ram"),
            ),
            True,
            id="qemu-memfd",
            marks=requires("qemu"),
        ),
    ],
)
def test_regions_of_kvm(
    start: Start, start_qemu: Start, kind: str, options: tuple[str, ...], shared: bool
) -> None:
    vm = (start if kind == "plain" else start_qemu)(1, *options)
    with Agent(vm.pid) as agent:
        agent.attach()
        regions = agent.regions()
        try:
            assert all(region.verified for region in regions)
            ram = region_at(regions, LOAD)
            assert ram.hva + LOAD - ram.gpa == vm.hva + LOAD
            assert (ram.fd >= 0) == shared
            signature = vm.symbols["signature"]
            assert read(agent, ram, signature, 17) == b"kvmgdb test guest"
            if kind == "qemu":  # the BIOS at the reset vector
                assert region_at(regions, (4 << 30) - 16)
        finally:
            close_all(regions)


@requires("qemu")
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_ram_above_the_hole(start_qemu: Start, machine: str) -> None:
    """5 GiB: the part that does not fit below the devices begins at 4 GiB."""
    vm = start_qemu(1, "-m", "5G", "-machine", machine)
    with Agent(vm.pid) as agent:
        agent.attach()
        regions = agent.regions()
        low, high = region_at(regions, LOAD), region_at(regions, 4 * GIB)
        hole = {"pc": 3 * GIB, "q35": 2 * GIB}[machine]
        assert low.gpa + low.size == hole
        assert high.hva == vm.hva + hole
        assert high.size == 5 * GIB - hole


@pytest.mark.parametrize("options", [(), ("memfd",)])
def test_an_ordinary_user_gets_a_guess_that_kvm_confirms(
    start: Start, unprivileged: Path, options: tuple[str, ...]
) -> None:
    vm = start(1, "eintr", *options, user=NOBODY)
    with Agent(vm.pid, unprivileged) as agent:
        agent.attach()
        unconfirmed = agent.regions()
        assert not any(region.verified for region in unconfirmed)
        close_all(unconfirmed)
        agent.stop()
        regions = agent.regions()
        try:
            ram = region_at(regions, LOAD)
            assert ram.verified
            assert ram.hva - ram.gpa == vm.hva
            assert ram.size >= RAM
            assert (ram.fd >= 0) == bool(options)
            assert read(agent, ram, vm.symbols["signature"], 17) == b"kvmgdb test guest"
        finally:
            close_all(regions)
        agent.resume()
    vm.assert_progress()
