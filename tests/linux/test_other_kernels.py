"""Other kernels than the one of Debian's stable cloud images: whatever suites can be
had, into the demo's cache."""

from __future__ import annotations

import pytest

from kvmgdb.demo.guest import GuestOptions
from kvmgdb.demo.kernel import fetch_kernel
from kvmgdb.errors import HostError
from kvmgdb.machine.target import parse_target
from tests.linux.fixtures import StartProbed
from tests.linux.test_variants import check_everything
from tests.support.require import requires

KERNELS = [
    ("linux-image-cloud-amd64", "bookworm-backports"),
    ("linux-image-rt-amd64", None),
    ("linux-image-amd64", None),
    ("linux-image-cloud-amd64", "trixie"),
    ("linux-image-cloud-amd64", "bullseye"),
    ("linux-image-cloud-amd64", "sid"),
]


@pytest.mark.slow
@requires("qemu", "cc")
@pytest.mark.parametrize(("package", "suite"), KERNELS)
def test_kernel(start_probed: StartProbed, package: str, suite: str | None) -> None:
    try:
        files = fetch_kernel(package, suite)
    except HostError as error:
        pytest.skip(f"the kernel {package} of {suite or 'this machine'} is not to be had: {error}")
    options = GuestOptions(name="kvmgdb-other", vcpus=2, memory=512, append="KVMGDB_LOAD=busy")
    guest = start_probed(files, options)
    machine = parse_target(str(guest.pid)).open()
    try:
        check_everything(guest, machine)
    finally:
        machine.close()
