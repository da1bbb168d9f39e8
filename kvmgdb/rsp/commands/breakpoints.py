"""Breakpoints and watchpoints: ``Z0``-``Z4``, ``z0``-``z4``.

::

    Z0,ffffffff81000000,1     kind, address, length
"""

from __future__ import annotations

from kvmgdb.errors import UnsupportedError
from kvmgdb.machine.interface import BreakpointKind
from kvmgdb.rsp.dispatch import (
    OK,
    UNSUPPORTED,
    MalformedPacketError,
    Reply,
    packet,
    parse_hex,
    parse_range,
)
from kvmgdb.rsp.session import Session

# The longest range one watchpoint may cover; larger ones are GDB's mistake.
_MAX_LENGTH = 1 << 20


@packet("Z")
def insert(session: Session, arguments: bytes) -> Reply:
    kind, address, length = _parse(arguments, "Z")
    if kind is None:
        return UNSUPPORTED
    session.require_stopped()
    try:
        session.debuggee.insert_breakpoint(session, kind, address, length)
    except UnsupportedError:
        # Empty: GDB then plants software breakpoints itself, and says that the
        # target lacks the others.
        return UNSUPPORTED
    return OK


@packet("z")
def remove(session: Session, arguments: bytes) -> Reply:
    kind, address, length = _parse(arguments, "z")
    if kind is None:
        return UNSUPPORTED
    session.require_stopped()
    session.debuggee.remove_breakpoint(session, kind, address, length)
    return OK


def _parse(arguments: bytes, name: str) -> tuple[BreakpointKind | None, int, int]:
    number, comma, where = arguments.partition(b",")
    # Conditions and commands (";X...") are evaluated by GDB: we announce none.
    where = where.partition(b";")[0]
    if not comma:
        raise MalformedPacketError(name, arguments)
    value = parse_hex(number, name)
    address, length = parse_range(where, name)
    if value > 4:
        return None, 0, 0
    if length > _MAX_LENGTH:
        raise MalformedPacketError(name, arguments)
    return BreakpointKind(value), address, length
