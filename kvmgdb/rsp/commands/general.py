"""The start and the end of a session: features, descriptions, detach, kill."""

from __future__ import annotations

from kvmgdb.errors import UnsupportedError
from kvmgdb.machine.native import rsp_frame_binary
from kvmgdb.printable import printable_lines
from kvmgdb.rsp import stop_reply
from kvmgdb.rsp.description import target_description
from kvmgdb.rsp.dispatch import (
    OK,
    PACKET_SIZE,
    UNSUPPORTED,
    MalformedPacketError,
    Reply,
    packet,
    parse_bytes,
    parse_hex,
)
from kvmgdb.rsp.monitor import run_command
from kvmgdb.rsp.session import Session
from kvmgdb.rsp.threads import PROCESS, format_thread

_ANNOUNCED = (
    f"PacketSize={PACKET_SIZE:x};qXfer:features:read+;qXfer:threads:read+;QStartNoAckMode+;"
    "multiprocess+;vContSupported+;swbreak+;hwbreak+;binary-upload+;exec-events+;"
    "qXfer:exec-file:read+;qXfer:libraries:read+;qXfer:auxv:read+;qXfer:vmcoreinfo:read+"
)

# Characters of console text per O packet: GDB takes them in any size, other
# clients keep them in a packet buffer.
_CONSOLE_PIECE = 4096


@packet("qSupported")
def supported(session: Session, arguments: bytes) -> Reply:
    """``qSupported:multiprocess+;swbreak+;xmlRegisters=i386;...``"""
    features = set()
    for item in arguments[1:].split(b";"):
        if item.endswith(b"+"):
            features.add(item[:-1].decode("ascii", "replace"))
    session.features = frozenset(features)
    return Reply(_ANNOUNCED.encode("ascii"))


@packet("QStartNoAckMode", arguments=False)
def start_no_ack_mode(session: Session, arguments: bytes) -> Reply:
    session.use_no_acks()
    return OK


@packet("vMustReplyEmpty", arguments=False)
def must_reply_empty(session: Session, arguments: bytes) -> Reply:
    """How GDB finds out what an unknown ``v`` packet gets."""
    return UNSUPPORTED


@packet("!", arguments=False)
def extended_mode(session: Session, arguments: bytes) -> Reply:
    return OK


@packet("?", arguments=False)
def why_stopped(session: Session, arguments: bytes) -> Reply:
    return stop_reply.attached(session)


@packet("qAttached")
def attached_to_existing(session: Session, arguments: bytes) -> Reply:
    """1: GDB detaches at its end instead of killing."""
    return Reply(b"1")


@packet("qC", arguments=False)
def current_thread(session: Session, arguments: bytes) -> Reply:
    if not session.has_machine:
        return Reply(b"E03")
    return Reply(b"QC" + format_thread(session, session.current_index).encode())


@packet("D")
def detach(session: Session, arguments: bytes) -> Reply:
    """``D`` or ``D;pid``."""
    if arguments and parse_hex(arguments.removeprefix(b";"), "D") != PROCESS:
        raise MalformedPacketError("D", arguments)
    session.detach()
    session.debuggee.log(f"{session.name} detached")
    return OK


@packet("vAttach;")
def attach(session: Session, arguments: bytes) -> Reply:
    """``vAttach;pid``: back to the machine after a detach."""
    if parse_hex(arguments, "vAttach;") != PROCESS:
        raise UnsupportedError("the virtual machine is process 1")
    session.attach()
    return stop_reply.attached(session)


@packet("vRun;")
def run_program(session: Session, arguments: bytes) -> Reply:
    """GDB, which has the kernel's file, thinks that it could be started as a program."""
    raise UnsupportedError("a guest's kernel is not started by its debugger: attach to it")


@packet("vKill;")
def kill(session: Session, arguments: bytes) -> Reply:
    """``vKill;pid``. A machine that somebody else runs is not ours to end."""
    if parse_hex(arguments, "vKill;") != PROCESS:
        raise MalformedPacketError("vKill;", arguments)
    end = session.debuggee.end_machine
    if end is None:
        raise UnsupportedError(
            "kvmgdb does not kill a virtual machine that it did not start; detach instead"
        )
    session.machine.stop()
    session.detach()
    end()
    return OK


@packet("k", arguments=False)
def kill_old(session: Session, arguments: bytes) -> None:
    """``k``, which has no reply: the debugger leaves, and ends a machine that
    was started for it."""
    end = session.debuggee.end_machine
    session.close()
    if end is not None:
        end()


@packet("qXfer:features:read:")
def read_features(session: Session, arguments: bytes) -> Reply:
    """``qXfer:features:read:target.xml:offset,length``"""
    annex, _, window = arguments.partition(b":")
    if annex != b"target.xml":
        return Reply(b"E00")
    return transfer(target_description().encode("utf-8"), window, "qXfer:features:read:")


def transfer(data: bytes, window: bytes, name: str) -> Reply:
    """The part ``offset,length`` of a ``qXfer`` object: ``m`` or, for the last, ``l``."""
    offset_text, _, length_text = window.partition(b",")
    offset, length = parse_hex(offset_text, name), parse_hex(length_text, name)
    piece = data[offset : offset + min(length, PACKET_SIZE // 2)]
    last = offset + len(piece) >= len(data)
    return Reply(framed=rsp_frame_binary(b"l" if last else b"m", piece, runs=False))


@packet("qRcmd,")
def remote_command(session: Session, arguments: bytes) -> Reply:
    """``qRcmd,<line in hex>``: GDB's ``monitor``."""
    line = parse_bytes(arguments, "qRcmd,").decode("utf-8", "replace")
    text = printable_lines(run_command(session, line))
    if not text:
        return OK
    for start in range(0, len(text), _CONSOLE_PIECE):
        session.console(text[start : start + _CONSOLE_PIECE])
    return OK
