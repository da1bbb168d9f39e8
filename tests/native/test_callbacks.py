"""Memory that comes from Python, and what is raised there."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from kvmgdb.errors import (
    HostError,
    MemoryFault,
    NoRamError,
    ReadOnlyMemoryError,
    TargetTimeoutError,
)
from kvmgdb.machine.native import Memory, Paging

START = 0x10000
SIZE = 0x10000
NO_PAGING = Paging(0, 0, 0, 0)


class Source:
    """Bytes at START, of which those from ``end`` on cannot be read."""

    def __init__(self, end: int = SIZE) -> None:
        self.content = bytearray(i * 7 % 251 for i in range(SIZE))
        self.end = end
        self.calls: list[tuple[int, int]] = []

    def read(self, gpa: int, length: int) -> bytes:
        self.calls.append((gpa, length))
        offset = gpa - START
        if offset + length > self.end:
            raise NoRamError(START + self.end)
        return bytes(self.content[offset : offset + length])

    def write(self, gpa: int, data: bytes) -> None:
        self.content[gpa - START : gpa - START + len(data)] = data


def _memory(
    read: Callable[[int, int], bytes], write: Callable[[int, bytes], None] | None = None
) -> Memory:
    memory = Memory()
    memory.add_callback(START, SIZE, read, write)
    return memory


def test_a_range_is_one_call() -> None:
    source = Source()
    with _memory(source.read, source.write) as memory:
        assert memory.read(START + 5, 0x5000) == source.content[5:0x5005]
        assert source.calls == [(START + 5, 0x5000)]
        memory.write(START + 0x100, b"written")
        assert source.content[0x100:0x107] == b"written"
        assert memory.read_virtual(NO_PAGING, START + 0x100, 7) == b"written"


def test_the_first_byte_without_ram_is_found() -> None:
    source = Source(end=0x3000)
    with _memory(source.read) as memory:
        data, error = memory.read_partial(START + 0x800, 0x8000)
        assert data == source.content[0x800:0x3000]
        assert isinstance(error, NoRamError)
        assert error.address == START + 0x3000


def test_a_short_answer_is_where_memory_ends() -> None:
    source = Source()
    with _memory(lambda gpa, length: source.read(gpa, length)[: START + 0x2000 - gpa]) as memory:
        data, error = memory.read_partial(START + 0x1000, 0x4000)
        assert data == source.content[0x1000:0x2000]
        assert isinstance(error, NoRamError)


def test_writing_without_a_write_callback() -> None:
    with _memory(Source().read) as memory, pytest.raises(ReadOnlyMemoryError) as caught:
        memory.write(START, b"x")
    assert caught.value.address == START


def _raiser(exception: BaseException) -> Callable[[int, int], bytes]:
    def read(gpa: int, length: int) -> bytes:
        raise exception

    return read


def test_an_error_of_ours_comes_out_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    raised = TargetTimeoutError("no answer")
    with _memory(_raiser(raised)) as memory:
        with pytest.raises(TargetTimeoutError) as caught:
            memory.read(START, 4)
        assert caught.value is raised
        data, error = memory.read_partial(START, 4)
        assert (data, error) == (b"", raised)
        frame, done, error = memory.frame_virtual(NO_PAGING, START, 4, True)
        assert (frame, done, error) == (b"$#00", 0, raised)
    assert capfd.readouterr() == ("", "")


def test_an_error_of_python_is_the_cause_of_ours(capfd: pytest.CaptureFixture[str]) -> None:
    raised = KeyError("bug")
    with _memory(_raiser(raised)) as memory, pytest.raises(HostError) as caught:
        memory.read(START, 4)
    assert caught.value.__cause__ is raised
    assert caught.value.os_error == errno.EIO
    assert capfd.readouterr() == ("", "")


def test_an_interrupt_is_not_kept_from_its_way() -> None:
    with _memory(_raiser(KeyboardInterrupt())) as memory:
        with pytest.raises(KeyboardInterrupt):
            memory.read_partial(START, 4)
        assert isinstance(memory.read_partial(0, 4)[1], NoRamError)  # it is over


def test_too_long_an_answer_is_an_error() -> None:
    with _memory(lambda gpa, length: bytes(length + 1)) as memory, pytest.raises(HostError):
        memory.read(START, 4)


def test_an_answer_that_is_no_bytes_is_an_error() -> None:
    wrong: Callable[[int, int], bytes] = lambda gpa, length: "text"[:length]  # type: ignore[return-value, assignment]  # noqa: E731
    with _memory(wrong) as memory, pytest.raises(HostError) as caught:
        memory.read(START, 4)
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_write_that_fails_says_so() -> None:
    def write(gpa: int, data: bytes) -> None:
        raise MemoryFault(gpa)

    with _memory(Source().read, write) as memory, pytest.raises(NoRamError) as caught:
        memory.write(START + 3, b"abc")
    assert caught.value.address == START + 3


def test_search_passes_over_what_has_no_ram() -> None:
    source = Source()

    def read(gpa: int, length: int) -> bytes:
        if gpa < START + 0x3000 and gpa + length > START + 0x2000:
            raise NoRamError(START + 0x2000)
        return source.read(gpa, length)

    source.content[0x1FFE:0x2002] = b"abcd"
    source.content[0x5123:0x5127] = b"abcd"
    with _memory(read) as memory:
        match, _, _ = memory.search_virtual(NO_PAGING, 0, 0, b"abcd", 1 << 30)
        assert match == START + 0x5123


def test_cleared_callbacks_are_let_go() -> None:
    source = Source()
    memory = _memory(source.read)
    memory.clear()
    assert isinstance(memory.read_partial(START, 4)[1], NoRamError)
    memory.add_callback(START, SIZE, source.read)
    assert memory.read(START, 4) == source.content[:4]
    memory.close()


def test_a_callback_may_use_memory_itself() -> None:
    inner = Source(end=0x1000)
    with _memory(inner.read) as below, _memory(lambda gpa, n: below.read(gpa, n)) as above:
        assert above.read(START, 0x1000) == inner.content[:0x1000]
        data, error = above.read_partial(START, 0x3000)
        assert data == inner.content[:0x1000]
        assert isinstance(error, NoRamError)
