"""The Python side of guest memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import threading

import pytest

from kvmgdb.errors import InvalidRangeError, MemoryFault, NoRamError
from kvmgdb.machine.native import Extent, Memory, Paging, PagingMode
from tests.native.guest import BASE, PAGE, PRESENT, USER, WRITABLE, Guest
from tests.rsp.wire import checksum, decode


def test_reads_and_writes_go_through_the_page_tables() -> None:
    with Guest() as guest:
        guest.map(BASE, 0x7000)
        guest.map(BASE + PAGE, 0x3000)
        guest.memory.write_virtual(guest.paging, BASE + PAGE - 3, b"abcdef")
        assert guest.ram[0x7FFD:0x8000] == b"abc"
        assert guest.ram[0x3000:0x3003] == b"def"
        assert guest.memory.read_virtual(guest.paging, BASE + PAGE - 3, 6) == b"abcdef"
        assert guest.memory.read(0x3000, 3) == b"def"
        guest.memory.write(0x3001, bytearray(b"XY"))
        assert guest.memory.read_virtual(guest.paging, BASE + PAGE, 3) == b"dXY"
        assert guest.memory.read(0, 0) == b""


def test_partial_reads_say_what_ended_them() -> None:
    with Guest() as guest:
        guest.ram[0x7000:0x7010] = bytes(range(16))
        guest.map(BASE, 0x7000)
        data, error = guest.memory.read_virtual_partial(guest.paging, BASE + 8, 2 * PAGE)
        assert len(data) == PAGE - 8
        assert data[:8] == bytes(range(8, 16))
        assert isinstance(error, MemoryFault)
        assert (error.address, error.level) == (BASE + PAGE, 1)
        data, error = guest.memory.read_partial(len(guest.ram) - 4, 8)
        assert data == bytes(4)
        assert isinstance(error, NoRamError)
        assert error.address == len(guest.ram)
        data, error = guest.memory.read_virtual_partial(guest.paging, BASE, 16)
        assert (data, error) == (bytes(range(16)), None)


def test_a_translation_has_every_entry() -> None:
    with Guest() as guest:
        guest.map(BASE + 5 * PAGE, 0x7000, USER)
        result = guest.memory.translate(guest.paging, BASE + 5 * PAGE + 0x123)
        assert result.gpa == 0x7123
        assert result.page_size == PAGE
        assert result.mode is PagingMode.LEVEL4
        assert len(result.entries) == 4
        assert result.entries[-1][1] == 0x7000 | USER | PRESENT
        for place, entry in result.entries:
            assert guest.memory.read(place, 8) == entry.to_bytes(8, "little")
        assert (result.writable, result.user, result.executable) == (False, True, True)
        guest.map(BASE, 0x7000, WRITABLE)
        result = guest.memory.translate(guest.paging, BASE)
        assert (result.writable, result.user) == (True, False)


def test_regions_that_overlap_are_refused_in_words() -> None:
    with Guest() as guest, pytest.raises(InvalidRangeError, match="overlaps another region"):
        guest.memory.add_file(0x1000, 0x1000, guest.fd)


def test_without_paging_an_address_is_itself() -> None:
    with Guest() as guest:
        paging = Paging(0x10, 0, 0, 0)
        assert paging.mode is PagingMode.NONE
        guest.ram[0x5000:0x5003] = b"abc"
        assert guest.memory.read_virtual(paging, 0x5000, 3) == b"abc"
        result = guest.memory.translate(paging, 0x5000)
        assert (result.gpa, result.entries) == (0x5000, ())


def test_extents_are_whole_however_many_entries_a_call_looks_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Guest() as guest:
        for page in range(9):
            guest.map(BASE + page * PAGE, 0x10000 + page * PAGE)
        guest.map(BASE + 9 * PAGE, 0x40000)
        guest.map((1 << 64) - PAGE, 0x50000)
        expected = [
            Extent(BASE, 0x10000, 9 * PAGE),
            Extent(BASE + 9 * PAGE, 0x40000, PAGE),
            Extent((1 << 64) - PAGE, 0x50000, PAGE),
        ]
        assert list(guest.memory.extents(guest.paging, 0, 0)) == expected
        assert list(guest.memory.extents(guest.paging, BASE, BASE + PAGE + 1)) == [
            Extent(BASE, 0x10000, PAGE + 1)
        ]
        monkeypatch.setattr("kvmgdb.machine.native._ENTRIES_PER_CALL", 4)
        assert list(guest.memory.extents(guest.paging, 0, 0)) == expected


def test_extents_of_hostile_tables_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmgdb.machine.native.MAX_ENTRIES", 1 << 16)
    with Guest() as guest:
        root = guest.paging.cr3
        guest.ram[root : root + PAGE] = (root | PRESENT).to_bytes(8, "little") * 512
        with pytest.raises(InvalidRangeError):
            for _ in guest.memory.extents(guest.paging, 0, 0):
                pass


def test_search_goes_on_where_a_slice_ended() -> None:
    with Guest() as guest:
        for page in range(64):
            guest.map(BASE + page * PAGE, (63 - page) * PAGE)
        needle = b"needle in a haystack"
        place = 40 * PAGE - 5
        guest.memory.write_virtual(guest.paging, BASE + place, needle)
        address, done, slices = BASE, False, 0
        match = None
        while match is None and not done:
            match, address, done = guest.memory.search_virtual(
                guest.paging, address, BASE + 64 * PAGE, needle, 1000
            )
            slices += 1
        assert match == BASE + place
        assert slices > 5
        assert guest.memory.search_virtual(guest.paging, match + 1, 0, needle, 1 << 30)[0] is None
        with pytest.raises(InvalidRangeError):
            guest.memory.search_virtual(guest.paging, 0, 0, b"", 1000)
        with pytest.raises(InvalidRangeError):
            guest.memory.search_virtual(guest.paging, 0, 0, bytes(65537), 1000)


@pytest.mark.parametrize("binary", [False, True])
def test_frames_of_memory_are_those_of_its_bytes(binary: bool) -> None:
    with Guest() as guest:
        content = random.Random(5).randbytes(16 * PAGE)
        guest.ram[: len(content)] = content
        for page in range(16):
            guest.map(BASE + page * PAGE, (15 - page) * PAGE)
        for length in (0, 1, 64, 5000, 16 * PAGE):
            frame, done, error = guest.memory.frame_virtual(
                guest.paging, BASE, length, binary, b"b" if binary else b""
            )
            assert (done, error) == (length, None)
            data = guest.memory.read_virtual(guest.paging, BASE, length)
            assert frame[:1] + frame[-3:] == b"$#" + checksum(frame[1:-3])
            assert decode(frame[1:-3]) == (b"b" + data if binary else data.hex().encode())
        frame, done, error = guest.memory.frame_virtual(
            guest.paging, BASE + 16 * PAGE - 2, 100, False
        )
        assert done == 2
        assert len(frame) == 2 * 2 + 4
        assert isinstance(error, MemoryFault)


def test_memory_of_a_process_is_read_without_touching_what_it_never_touched() -> None:
    size = 256 * PAGE
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    area[7 * PAGE : 7 * PAGE + 5] = b"seven"
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        with Memory(pid) as memory:
            memory.add_process(0, size, address)
            before = _touched_pages(pid, address, 256)
            assert memory.read(0, size) == area[:]
            assert _touched_pages(pid, address, 256) == before == 1
            memory.write(9 * PAGE, b"nine")
            assert memory.read(9 * PAGE, 4) == b"nine"
            assert _touched_pages(pid, address, 256) == 2
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _touched_pages(pid: int, address: int, count: int) -> int:
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * 8)
        data = pagemap.read(count * 8)
    return sum(data[i + 7] >> 6 != 0 for i in range(0, len(data), 8))


def test_threads_may_read_at_once() -> None:
    with Guest() as guest:
        for page in range(64):
            guest.ram[page * PAGE : (page + 1) * PAGE] = bytes([page]) * PAGE
            guest.map(BASE + page * PAGE, page * PAGE)
        wrong: list[int] = []

        def read(page: int) -> None:
            for _ in range(200):
                frame, _, _ = guest.memory.frame_virtual(
                    guest.paging, BASE + page * PAGE, PAGE, False
                )
                data = guest.memory.read_virtual(guest.paging, BASE + page * PAGE, PAGE)
                if data != bytes([page]) * PAGE or decode(frame[1:-3]) != data.hex().encode():
                    wrong.append(page)

        threads = [threading.Thread(target=read, args=(page,)) for page in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert not wrong
