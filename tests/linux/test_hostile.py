"""A guest that lies: a real one's memory with bytes that a generator changed.

Whatever is read from it ends soon, with a result, a partial one, or an error that
a user can be shown.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from kvmgdb.errors import KvmgdbError
from kvmgdb.linux.attach import stopped
from kvmgdb.linux.identity import identify
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.log import read_log
from kvmgdb.linux.modules import list_modules
from kvmgdb.linux.stacks import Unwinder
from kvmgdb.linux.tasks import current_task, list_tasks, read_task
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.native import Memory

PAGE = 4096
ROUNDS = 40
ROUND_SECONDS = 20.0


class Liar:
    """The memory of a machine with other bytes in it, by guest-physical address."""

    def __init__(self, machine: Machine) -> None:
        assert machine.memory is not None
        self._real = machine.memory
        self.lies: dict[int, dict[int, int]] = {}
        self.memory = Memory()
        end = max(region.gpa + region.size for region in machine.info().regions)
        self.memory.add_callback(0, end, self._read)

    def _read(self, gpa: int, length: int) -> bytes:
        data = bytearray(self._real.read(gpa, length))
        for page in range(gpa // PAGE, (gpa + length - 1) // PAGE + 1):
            for at, value in self.lies.get(page, {}).items():
                if gpa <= at < gpa + length:
                    data[at - gpa] = value
        return bytes(data)

    def lie(self, kernel: Kernel, address: int, data: bytes) -> None:
        """Other bytes at a kernel address."""
        for offset, value in enumerate(data):
            gpa = self._real.translate(kernel.paging, address + offset).gpa
            self.lies.setdefault(gpa // PAGE, {})[gpa] = value


@pytest.fixture
def liar(machine: Machine) -> Iterator[Liar]:
    with stopped(machine):
        made = Liar(machine)
        yield made
        made.memory.close()


@pytest.fixture
def deceived(liar: Liar, kernel: Kernel) -> Kernel:
    """The kernel as the liar shows it; found while it told the truth."""
    return Kernel(liar.memory, kernel.location, kernel.symbols, kernel.kallsyms)


def read_all(kernel: Kernel) -> None:
    """Everything that reads structures of the kernel."""

    def unwind() -> None:
        unwinder = Unwinder(kernel)
        for task in list(list_tasks(kernel))[:20]:
            unwinder.of_sleeping(task.object)

    def modules() -> None:
        for module in list_modules(kernel):
            list(module.symbols)
            list(module.types.table.ids)
            assert module.users is not None

    readers: tuple[Callable[[], object], ...] = (
        lambda: identify(kernel),
        lambda: list_tasks(kernel),
        lambda: read_task(current_task(kernel, 0)),
        lambda: read_log(kernel),
        modules,
        unwind,
    )
    for read in readers:
        begin = time.monotonic()
        with suppress(KvmgdbError):
            read()
        assert time.monotonic() - begin < ROUND_SECONDS


def structures(kernel: Kernel) -> list[tuple[int, int]]:
    """Where lies hurt: (address, bytes) of what the readers start from."""
    tasks = [
        (task.object.address, kernel.types.size("task_struct"))
        for task in list(list_tasks(kernel))[:10]
    ]
    modules = [(module.address, kernel.types.size("module")) for module in list_modules(kernel)]
    ring = kernel.u64(kernel.symbol("prb"))
    log = [(ring, kernel.types.size("printk_ringbuffer"))]
    return [*tasks, *modules, *log, (kernel.symbol("modules"), 16), (kernel.symbol("prb"), 8)]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_random_lies(liar: Liar, deceived: Kernel) -> None:
    generator = random.Random(20260101)
    places = structures(deceived)
    for number in range(ROUNDS):
        share = (0.3, 0.05, 0.01)[number % 3]
        liar.lies.clear()
        for address, size in places:
            for _ in range(1 + size // 64):
                at = address + generator.randrange(0, size, 8)
                value = generator.choice(
                    (
                        bytes(8),
                        b"\xff" * 8,
                        generator.randbytes(8),
                        generator.choice(places)[0].to_bytes(8, "little"),
                    )
                )
                if generator.random() < share:
                    liar.lie(deceived, at, value[: size - (at - address)])
        read_all(deceived)


def test_a_task_list_that_loops(liar: Liar, deceived: Kernel) -> None:
    tasks = list(list_tasks(deceived))
    offset = deceived.types.offset("task_struct", "tasks")
    back = (tasks[3].object.address + offset).to_bytes(8, "little")
    liar.lie(deceived, tasks[20].object.address + offset, back)
    result = list_tasks(deceived)
    assert result.damage is not None
    assert "does not end" in result.damage
    assert [task.tid for task in result][:20] == [task.tid for task in tasks][:20]


def test_a_module_list_that_leads_nowhere(liar: Liar, deceived: Kernel) -> None:
    whole = list_modules(deceived)
    offset = deceived.types.offset("module", "list")
    liar.lie(deceived, whole.modules[1].address + offset, (0x1234).to_bytes(8, "little"))
    result = list_modules(deceived)
    assert result.damage is not None
    assert [module.name for module in result] == [module.name for module in whole][:2]


def test_a_log_that_claims_to_be_huge(liar: Liar, deceived: Kernel) -> None:
    ring = deceived.u64(deceived.symbol("prb"))
    at = ring + deceived.types.offset("printk_ringbuffer", "text_data_ring.size_bits")
    liar.lie(deceived, at, (0xFFFFFFFF).to_bytes(4, "little"))
    with pytest.raises(KvmgdbError):
        read_log(deceived)


def test_more_cpus_than_there_can_be(liar: Liar, deceived: Kernel) -> None:
    liar.lie(deceived, deceived.symbol("nr_cpu_ids"), b"\xff\xff\xff\xff")
    with pytest.raises(KvmgdbError, match="claims to have 4294967295 CPUs"):
        deceived.cpus()
