"""Files of other kernels than that of Debian's stable cloud images, where the cache
of the demo has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmgdb.demo.cache import cache_directory
from kvmgdb.demo.kernel import fetch_kernel
from kvmgdb.linux.native import Kind
from tests.linux.test_other_kernels import KERNELS
from tests.support.gdb import GdbSession
from tests.support.require import PYPI_GDB, requires
from tests.symbols.files import readelf
from tests.symbols.test_frames import VCPUS, BusyGuest, check_random_stops

STOPS = 15


@pytest.mark.slow
@requires("qemu", "cc", "gdb18")
@pytest.mark.parametrize(("package", "suite"), KERNELS)
def test_kernel(tmp_path: Path, package: str, suite: str | None) -> None:
    name = package if suite is None else f"{package}@{suite}"
    if not (cache_directory("kernels") / "by-package" / name).exists():
        pytest.skip(f"the kernel {name} is not in the cache")
    guest = BusyGuest(fetch_kernel(package, suite), tmp_path, memory=512)
    try:
        readelf(guest.path, "--headers", "--debug-dump=abbrev,aranges,frames")
        with GdbSession(PYPI_GDB) as gdb:
            guest.connect(gdb)
            size = guest.kernel.types.size("task_struct")
            assert gdb.integer("sizeof(struct task_struct)") == size
            assert gdb.value("init_task.comm").startswith('"swapper/0')
            # 5.10 has no types of per-CPU variables.
            if guest.kernel.types.table.find(".data..percpu", Kind.DATASEC):
                for cpu in range(VCPUS):
                    assert gdb.integer(f"percpu[{cpu}]->runqueues.cpu") == cpu
            check_random_stops(guest, gdb, STOPS, seed=7)
    finally:
        guest.close()
