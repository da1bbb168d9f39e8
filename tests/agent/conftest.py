"""The agent's program, the guest, and VMMs of both kinds that run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.vm import NOBODY, Program, Vm

_HERE = Path(__file__).parent
_AGENT = _HERE.parents[1] / "native" / "agent"


@pytest.fixture(scope="session", autouse=True)
def agent_program() -> Path:
    """The agent with sanitizers, unless KVMGDB_AGENT names another."""
    if "KVMGDB_AGENT" not in os.environ:
        subprocess.run(["make", "-s", "-j2", "-C", str(_AGENT), "asan"], check=True)
        os.environ["KVMGDB_AGENT"] = str(_AGENT / "build" / "asan" / "kvmgdb-agent")
    # Sanitizers look for leaks by ptrace, which is taken.
    os.environ["ASAN_OPTIONS"] = "detect_leaks=0"
    return Path(os.environ["KVMGDB_AGENT"])


@pytest.fixture(scope="session")
def program() -> Iterator[Program]:
    """The guest and the plain VMM, compiled, where other users can run them:
    pytest's own directories are closed to them."""
    with tempfile.TemporaryDirectory(prefix="kvmgdb-agent-") as name:
        target = Path(name)
        target.chmod(0o755)
        yield Program.build(_HERE / "guests", target)


@pytest.fixture
def start(program: Program) -> Iterator[Callable[..., Vm]]:
    """Starts the plain VMM: ``start(vcpus, *options, user=None)``."""
    machines: list[Vm] = []

    def run(vcpus: int = 1, *options: str, user: int | None = None) -> Vm:
        machines.append(Vm.plain(program, vcpus, options, user))
        return machines[-1]

    yield run
    for machine in machines:
        machine.close()


@pytest.fixture
def start_qemu(program: Program) -> Iterator[Callable[..., Vm]]:
    """Starts QEMU: ``start_qemu(vcpus, *arguments)``."""
    machines: list[Vm] = []

    def run(vcpus: int = 1, *arguments: str) -> Vm:
        machines.append(Vm.qemu(program, vcpus, arguments))
        return machines[-1]

    yield run
    for machine in machines:
        machine.close()


@pytest.fixture
def unprivileged(agent_program: Path, program: Program) -> Path:
    """The agent as an ordinary user: no /dev/kvm, tracefs, debugfs, perf."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    binary = program.vmm.parent / "kvmgdb-agent"
    shutil.copy(agent_program, binary)
    wrapper = binary.with_name("agent-as-nobody")
    setpriv = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
    wrapper.write_text(f'#!/bin/sh\nexec {setpriv} {binary} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper
