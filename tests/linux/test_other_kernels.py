"""Other kernels than the one of Debian's stable cloud images, where the cache of
the demo has them: ``fetch_kernel(package, suite)`` puts them there."""

from __future__ import annotations

import pytest

from kvmgdb.demo.cache import cache_directory
from kvmgdb.demo.guest import GuestOptions
from kvmgdb.demo.kernel import fetch_kernel
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
]


@pytest.mark.slow
@requires("qemu", "cc")
@pytest.mark.parametrize(("package", "suite"), KERNELS)
def test_kernel(start_probed: StartProbed, package: str, suite: str | None) -> None:
    name = package if suite is None else f"{package}@{suite}"
    if not (cache_directory("kernels") / "by-package" / name).exists():
        pytest.skip(f"the kernel {name} is not in the cache")
    options = GuestOptions(name="kvmgdb-other", vcpus=2, memory=512, append="KVMGDB_LOAD=busy")
    guest = start_probed(fetch_kernel(package, suite), options)
    machine = parse_target(str(guest.pid)).open()
    try:
        check_everything(guest, machine)
    finally:
        machine.close()
