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
from kvmgdb.linux.generated import list_generated
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
ROUND_SECONDS = 60.0


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


def test_a_list_of_generated_code_that_loops(liar: Liar, deceived: Kernel) -> None:
    """The list's head leads into another list, which never comes back to it."""
    elsewhere = list_tasks(deceived).tasks[3].object.member("tasks").address
    liar.lie(deceived, deceived.symbol("bpf_kallsyms"), elsewhere.to_bytes(8, "little"))
    result = list_generated(deceived)
    assert result.damage is not None
    assert all(0 < piece.size <= 64 << 20 for piece in result)
    assert any("generated code" in problem for problem in Unwinder(deceived).problems)


def test_a_string_without_an_end(liar: Liar, deceived: Kernel) -> None:
    text = deceived.u64(deceived.symbol("saved_command_line"))
    liar.lie(deceived, text, b"A" * (2 * PAGE))
    assert identify(deceived).command_line == "A" * PAGE


def test_a_module_that_claims_symbols_without_number(liar: Liar, deceived: Kernel) -> None:
    module = list_modules(deceived).modules[0]
    table = deceived.object("module", module.address).member("kallsyms").target()
    liar.lie(deceived, table.member("num_symtab").address, b"\xff\xff\xff\xff")
    with pytest.raises(KvmgdbError, match="claims to have 4294967295 symbols"):
        len(module.symbols)


def test_a_log_that_claims_to_be_huge(liar: Liar, deceived: Kernel) -> None:
    ring = deceived.u64(deceived.symbol("prb"))
    at = ring + deceived.types.offset("printk_ringbuffer", "text_data_ring.size_bits")
    liar.lie(deceived, at, (0xFFFFFFFF).to_bytes(4, "little"))
    with pytest.raises(KvmgdbError):
        read_log(deceived)


def log_rings(kernel: Kernel) -> list[tuple[int, int]]:
    """(address, bytes) of the descriptors, their information, and the text."""
    ring = kernel.object("printk_ringbuffer", kernel.u64(kernel.symbol("prb")))
    descriptors, text = ring.member("desc_ring"), ring.member("text_data_ring")
    count = 1 << descriptors.member("count_bits").integer()
    return [
        (descriptors.member("descs").integer(), count * kernel.types.size("prb_desc")),
        (descriptors.member("infos").integer(), count * kernel.types.size("printk_info")),
        (text.member("data").integer(), 1 << text.member("size_bits").integer()),
    ]


@pytest.mark.slow
def test_random_lies_in_the_log(liar: Liar, deceived: Kernel) -> None:
    """However its rings are damaged: no more text than there is, and soon."""
    generator = random.Random(20200610)
    rings = log_rings(deceived)
    # Few are in use, and they are the first.
    used = 64 * len(read_log(deceived))
    text = rings[2][1]
    for _ in range(ROUNDS):
        liar.lies.clear()
        for address, size in rings:
            for _ in range(60):
                at = address + generator.randrange(0, min(size, used), 8)
                word = generator.choice(
                    (
                        bytes(8),
                        b"\xff" * 8,
                        generator.randbytes(8),
                        deceived.read(at + 8, 8),
                        generator.randrange(text).to_bytes(8, "little"),
                    )
                )
                liar.lie(deceived, at, word)
        begin = time.monotonic()
        with suppress(KvmgdbError):
            assert sum(len(record.text) for record in read_log(deceived)) <= 4 * text
        assert time.monotonic() - begin < ROUND_SECONDS


def test_log_texts_that_overlap(liar: Liar, deceived: Kernel) -> None:
    """Every descriptor that is in use claims all of the text from its own block on."""
    (descriptors, _), (infos, _), (_, size) = log_rings(deceived)
    types = deceived.types
    begin = types.offset("prb_desc", "text_blk_lpos.begin")
    end = types.offset("prb_desc", "text_blk_lpos.next")
    length = types.offset("printk_info", "text_len")
    for index in range(len(read_log(deceived))):
        at = descriptors + index * types.size("prb_desc")
        begins = deceived.u64(at + begin)
        liar.lie(deceived, at + end, (begins | size - 8).to_bytes(8, "little"))
        at = infos + index * types.size("printk_info")
        liar.lie(deceived, at + length, b"\xff\xff")
    with pytest.raises(KvmgdbError, match="overlap"):
        read_log(deceived)


def test_more_cpus_than_there_can_be(liar: Liar, deceived: Kernel) -> None:
    liar.lie(deceived, deceived.symbol("nr_cpu_ids"), b"\xff\xff\xff\xff")
    with pytest.raises(KvmgdbError, match="claims to have 4294967295 CPUs"):
        deceived.cpus()
