"""Code that the guest's kernel generates while it runs: BPF, ftrace and kprobes."""

from __future__ import annotations

import pytest

from kvmgdb.demo.guest import GuestOptions
from kvmgdb.demo.kernel import DEFAULT_PACKAGE, fetch_kernel
from kvmgdb.errors import HostError
from kvmgdb.linux.generated import list_generated
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.stacks import Unwinder
from kvmgdb.machine.target import parse_target
from tests.linux.commands import kvmgdb
from tests.linux.fixtures import StartProbed
from tests.linux.probed import ProbedGuest
from tests.linux.test_state import GENERATED
from tests.linux.test_variants import check_everything
from tests.support.require import requires


def own_generated(guest: ProbedGuest) -> list[str]:
    """The lines of the guest's /proc/kallsyms."""
    lines = guest.text("/proc/kallsyms").splitlines()
    return [line for line in lines if line.endswith(GENERATED)]


def check_generated(guest: ProbedGuest, kernel: Kernel) -> None:
    generated = list_generated(kernel)
    assert generated.damage is None
    found = [f"{piece.address:016x} t {piece.name}\t[{piece.owner}]" for piece in generated]
    assert found == own_generated(guest)
    kinds = {piece.name.removesuffix("_filter").removesuffix("_hooked")[:9] for piece in generated}
    assert kinds == {"bpf_prog_", "bpf_tramp", "ftrace_tr", "kprobe_in", "kprobe_op"}
    unwinder = Unwinder(kernel)
    assert unwinder.problems == []
    for piece in generated:
        assert generated.at(piece.address + piece.size - 1) is piece
        assert generated.at(piece.address - 1) is not piece


@pytest.mark.slow
@requires("qemu", "cc")
@pytest.mark.parametrize("suite", [None, "sid"])
def test_generated_code(start_probed: StartProbed, suite: str | None) -> None:
    """With one CPU: while a translator executes one, others must not change its code.
    The workers run through most of it, and each of their stacks comes to its end."""
    try:
        files = fetch_kernel(DEFAULT_PACKAGE, suite)
    except HostError as error:
        pytest.skip(f"the kernel of {suite} is not to be had: {error}")
    append = "KVMGDB_GENERATE=1 KVMGDB_LOAD=busy"
    options = GuestOptions(name="kvmgdb-generated", vcpus=1, memory=384, append=append)
    guest = start_probed(files, options)
    machine = parse_target(str(guest.pid)).open()
    try:
        check_generated(guest, check_everything(guest, machine))
    finally:
        machine.close()
    own = own_generated(guest)
    assert kvmgdb(guest.pid, "symbols").stdout.splitlines()[-len(own) :] == own
