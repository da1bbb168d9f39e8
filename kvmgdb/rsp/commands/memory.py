"""Guest memory: ``m M X x qSearch:memory qCRC``.

Addresses are guest-virtual, as the selected vCPU translates them, or
guest-physical after ``Qqemu.PhyMemMode:1``.
"""

from __future__ import annotations

import asyncio

from kvmgdb.errors import InvalidRangeError, KvmgdbError, UnsupportedError
from kvmgdb.machine.interface import Vcpu
from kvmgdb.machine.native import (
    Memory,
    Paging,
    rsp_crc,
    rsp_frame_binary,
    rsp_frame_hex,
)
from kvmgdb.rsp.dispatch import (
    OK,
    PACKET_SIZE,
    MalformedPacketError,
    Reply,
    packet,
    parse_bytes,
    parse_hex,
    parse_range,
)
from kvmgdb.rsp.session import Session

# What fits into one reply.
_MAX_HEX = PACKET_SIZE // 2 - 4
_MAX_BINARY = PACKET_SIZE - 8
# Bytes that a long search or checksum looks at before other packets get a turn.
_SLICE = 16 << 20
_MAX_PATTERN = 0x10000
_ADDRESS_END = 1 << 64


@packet("m")
def read_hex(session: Session, arguments: bytes) -> Reply:
    """``m<addr>,<length>`` -> ``<hex>``, fewer bytes where memory ends earlier."""
    address, length = parse_range(arguments, "m")
    return _framed(session, address, min(length, _MAX_HEX), b"", binary=False)


@packet("x")
def read_binary(session: Session, arguments: bytes) -> Reply:
    """``x<addr>,<length>`` -> ``b<binary>`` (GDB 16)."""
    address, length = parse_range(arguments, "x")
    return _framed(session, address, min(length, _MAX_BINARY), b"b", binary=True)


@packet("M")
def write_hex(session: Session, arguments: bytes) -> Reply:
    """``M<addr>,<length>:<hex>``"""
    where, colon, text = arguments.partition(b":")
    address, length = parse_range(where, "M")
    data = parse_bytes(text, "M")
    if not colon or len(data) != length:
        raise MalformedPacketError("M", arguments)
    _write(session, address, data)
    return OK


@packet("X")
def write_binary(session: Session, arguments: bytes) -> Reply:
    """``X<addr>,<length>:<binary>``; with length 0 GDB asks whether there is ``X``."""
    where, colon, data = arguments.partition(b":")
    address, length = parse_range(where, "X")
    if not colon or len(data) != length:
        raise MalformedPacketError("X", where)
    _write(session, address, data)
    return OK


def _framed(session: Session, address: int, length: int, prefix: bytes, binary: bool) -> Reply:
    """The reply with what :func:`_read` returns, by the shortest way."""
    view = None if session.physical_memory else session.register_vcpu.memory_view()
    if view is None or length == 0:
        encode = rsp_frame_binary if binary else rsp_frame_hex
        return Reply(framed=encode(prefix, _read(session, address, length), runs=True))
    memory, paging = view
    length = min(length, _ADDRESS_END - address)
    frame, done, error = memory.frame_virtual(paging, address, length, binary, prefix)
    if not done and error is not None:
        raise error
    return Reply(framed=frame)


def _read(session: Session, address: int, length: int) -> bytes:
    """The bytes up to the first that cannot be read. Raises where there is none."""
    if length == 0:
        return b""
    length = min(length, _ADDRESS_END - address)
    vcpu = session.register_vcpu
    if not session.physical_memory:
        return vcpu.read_memory(address, length)
    data, error = _physical(session).read_partial(address, length)
    if not data and error is not None:
        raise error
    return data


def _write(session: Session, address: int, data: bytes) -> None:
    vcpu = session.register_vcpu
    if not data:
        return
    if address + len(data) > _ADDRESS_END:
        raise InvalidRangeError(f"a write of {len(data)} bytes at {address:#x} wraps around")
    if session.physical_memory:
        session.machine.write_physical(address, data)
    else:
        vcpu.write_memory(address, data)


def _physical(session: Session) -> Memory:
    memory = session.machine.memory
    if memory is None:
        raise UnsupportedError("guest-physical memory cannot be reached through this target")
    return memory


@packet("qCRC:")
async def crc(session: Session, arguments: bytes) -> Reply:
    """``qCRC:<addr>,<length>`` -> ``C<crc32>``, for ``compare-sections``."""
    address, length = parse_range(arguments, "qCRC:")
    if address + length > _ADDRESS_END:
        raise InvalidRangeError("the range wraps around")
    value = 0xFFFFFFFF
    while length:
        piece = _read(session, address, min(length, _SLICE))
        value = rsp_crc(value, piece)
        address += len(piece)
        length -= len(piece)
        await asyncio.sleep(0)
    return Reply(b"C%x" % value)


@packet("qSearch:memory:")
async def search(session: Session, arguments: bytes) -> Reply:
    """``qSearch:memory:<addr>;<length>;<pattern>`` -> ``0`` or ``1,<addr>``.

    The pattern is binary. What is not mapped is passed over.
    """
    name = "qSearch:memory:"
    address_text, _, rest = arguments.partition(b";")
    length_text, semicolon, pattern = rest.partition(b";")
    address, length = parse_hex(address_text, name), parse_hex(length_text, name)
    if not semicolon or not 0 < len(pattern) <= _MAX_PATTERN:
        raise MalformedPacketError(name, arguments[:40])
    end = min(address + length, _ADDRESS_END)
    vcpu = session.register_vcpu
    paging = vcpu.paging()
    memory = session.machine.memory
    if memory is None or paging is None:
        found = await _search_by_reading(vcpu, address, end, pattern)
    else:
        if session.physical_memory:
            # Without paging an address is its own translation below 4 GiB only.
            if end > 1 << 32:
                raise UnsupportedError("a search of physical memory ends at 4 GiB")
            paging = Paging(0, 0, 0, 0)
        found = await _search_mapped(memory, paging, address, end, pattern)
    return Reply(b"0" if found is None else b"1,%x" % found)


async def _search_mapped(
    memory: Memory, paging: Paging, address: int, end: int, pattern: bytes
) -> int | None:
    done = False
    while not done:
        match, address, done = memory.search_virtual(
            paging, address, end % _ADDRESS_END, pattern, _SLICE
        )
        if match is not None:
            return match
        # Other packets, and the interrupt that ends this search, get a turn.
        await asyncio.sleep(0)
    return None


async def _search_by_reading(vcpu: Vcpu, address: int, end: int, pattern: bytes) -> int | None:
    """For targets whose memory comes through a stub."""
    kept = b""
    while address < end:
        try:
            piece = vcpu.read_memory(address, min(0x1000 - address % 0x1000, end - address))
        except KvmgdbError:
            kept = b""
            address += 0x1000 - address % 0x1000
            continue
        window = kept + piece
        position = window.find(pattern)
        if position >= 0:
            return address - len(kept) + position
        kept = window[-(len(pattern) - 1) :] if len(pattern) > 1 else b""
        address += len(piece)
        await asyncio.sleep(0)
    return None
