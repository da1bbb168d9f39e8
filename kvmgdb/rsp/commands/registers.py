"""Registers: ``g G p P``."""

from __future__ import annotations

from kvmgdb.errors import UnsupportedError
from kvmgdb.machine.registers import (
    REGISTERS,
    STOP_GROUPS,
    STOP_REGISTERS,
    STOP_SIZE,
    Register,
    RegisterFile,
)
from kvmgdb.rsp.dispatch import OK, MalformedPacketError, Reply, packet, parse_bytes, parse_hex
from kvmgdb.rsp.session import Session

_ALL_KNOWN = b"\1" * len(STOP_REGISTERS)


@packet("g", arguments=False)
def read_all(session: Session, arguments: bytes) -> Reply:
    """``g``: the registers of the layout that every stop fetches. GDB asks for
    those behind them one by one."""
    return Reply(_hex(session.register_vcpu.read_registers(STOP_GROUPS)))


def _hex(file: RegisterFile) -> bytes:
    text = file.raw[:STOP_SIZE].hex().encode("ascii")
    if file.known[: len(STOP_REGISTERS)] == _ALL_KNOWN:
        return text
    shown = bytearray(text)
    for register in STOP_REGISTERS:
        if not file.known[register.number]:
            shown[2 * register.offset : 2 * (register.offset + register.size)] = b"xx" * (
                register.size
            )
    return bytes(shown)


@packet("G")
def write_all(session: Session, arguments: bytes) -> Reply:
    """``G<hex>``: writes those registers that differ from what they are. ``xx``
    leaves one as it is, and so does an end before it."""
    if not 0 < len(arguments) <= 2 * STOP_SIZE:
        raise MalformedPacketError("G", arguments)
    vcpu = session.register_vcpu
    file = vcpu.read_registers(STOP_GROUPS)
    changes: list[tuple[Register, bytes]] = []
    for register in STOP_REGISTERS:
        text = arguments[2 * register.offset : 2 * (register.offset + register.size)]
        if not text:
            break
        if text.strip(b"x"):
            value = parse_bytes(text, "G")
            if len(value) != register.size:
                raise MalformedPacketError("G", arguments)
            if value != file.get_bytes(register):
                changes.append((register, value))
    for register, value in changes:
        vcpu.write_register(register.name, value)
    return OK


@packet("p")
def read_one(session: Session, arguments: bytes) -> Reply:
    """``p<number>``"""
    register = _register(arguments, "p")
    vcpu = session.register_vcpu
    value = vcpu.read_registers(frozenset({register.unit})).get_bytes(register)
    if value is None:
        return Reply(b"xx" * register.size)
    return Reply(value.hex().encode("ascii"))


@packet("P")
def write_one(session: Session, arguments: bytes) -> Reply:
    """``P<number>=<hex>``"""
    number, equals, text = arguments.partition(b"=")
    register = _register(number, "P")
    value = parse_bytes(text, "P")
    if not equals or len(value) != register.size:
        raise MalformedPacketError("P", arguments)
    session.register_vcpu.write_register(register.name, value)
    return OK


def _register(text: bytes, name: str) -> Register:
    number = parse_hex(text, name)
    if number >= len(REGISTERS):
        raise UnsupportedError(f"there is no register {number}")
    return REGISTERS[number]
