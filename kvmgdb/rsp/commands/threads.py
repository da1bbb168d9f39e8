"""Threads (vCPUs, and sleeping tasks): ``H T qfThreadInfo qThreadExtraInfo qXfer:threads``."""

from __future__ import annotations

from xml.sax.saxutils import quoteattr

from kvmgdb.machine.interface import StopReason, Vcpu
from kvmgdb.rsp.commands.general import transfer
from kvmgdb.rsp.dispatch import OK, MalformedPacketError, Reply, packet
from kvmgdb.rsp.session import Session
from kvmgdb.rsp.threads import format_thread, parse_thread, parse_vcpu


@packet("H")
def select(session: Session, arguments: bytes) -> Reply:
    """``Hg<thread>`` for registers and memory, ``Hc<thread>`` for ``c`` and ``s``."""
    if session.tasks.claims(arguments[1:]):
        if arguments[:1] == b"g":
            session.register_task = session.tasks.select(arguments[1:])
        return OK
    number = parse_thread(arguments[1:], len(session.machine.vcpus), "H")
    index = number - 1 if number > 0 else None
    if arguments[:1] == b"g":
        session.register_index = index
        session.register_task = None
    elif arguments[:1] == b"c":
        session.continue_index = index
    else:
        raise MalformedPacketError("H", arguments)
    return OK


@packet("T")
def is_alive(session: Session, arguments: bytes) -> Reply:
    """``T<thread>``"""
    if session.tasks.claims(arguments):
        session.tasks.find(arguments)
        return OK
    parse_vcpu(arguments, len(session.machine.vcpus), "T")
    return OK


@packet("qfThreadInfo", arguments=False)
def first_threads(session: Session, arguments: bytes) -> Reply:
    """``m<thread>,<thread>...``; all of them at once."""
    if not session.has_machine:
        return Reply(b"l")
    ids = [format_thread(session, vcpu.index) for vcpu in session.machine.vcpus]
    ids += map(session.tasks.format, session.tasks.tasks().values())
    return Reply(b"m" + ",".join(ids).encode("ascii"))


@packet("qsThreadInfo", arguments=False)
def more_threads(session: Session, arguments: bytes) -> Reply:
    return Reply(b"l")


@packet("qThreadExtraInfo,")
def extra_info(session: Session, arguments: bytes) -> Reply:
    """``qThreadExtraInfo,<thread>`` -> a line of text in hex."""
    if session.tasks.claims(arguments):
        task = session.tasks.find(arguments)
        return Reply(f"{session.tasks.name(task)} [{task.state}]".encode().hex().encode())
    index = parse_vcpu(arguments, len(session.machine.vcpus), "qThreadExtraInfo,")
    vcpu = session.machine.vcpus[index]
    text = _name(session, vcpu) + (f" [{vcpu.state}]" if vcpu.state else "")
    return Reply(text.encode("utf-8").hex().encode("ascii"))


@packet("qXfer:threads:read:")
def thread_list(session: Session, arguments: bytes) -> Reply:
    """``qXfer:threads:read::offset,length``: the same as XML, with names."""
    annex, colon, window = arguments.partition(b":")
    if annex or not colon:
        return Reply(b"E00")
    lines = ['<?xml version="1.0"?><threads>']
    shown = _will_be_shown(session)
    for vcpu in session.machine.vcpus if session.has_machine else ():
        thread = format_thread(session, vcpu.index)
        name = quoteattr(_name(session, vcpu) if shown else f"vCPU {vcpu.index}")
        lines.append(
            f'<thread id="{thread}" core="{vcpu.index}" name={name}>'
            f"{vcpu.state if shown else ''}</thread>"
        )
    for task in session.tasks.tasks().values() if session.has_machine else ():
        name = quoteattr(session.tasks.name(task))
        lines.append(f'<thread id="{session.tasks.format(task)}" name={name}>{task.state}</thread>')
    lines.append("</threads>")
    return transfer("".join(lines).encode("utf-8"), window, "qXfer:threads:read:")


def _name(session: Session, vcpu: Vcpu) -> str:
    """``vCPU 1 [kworker/1:2 pid 57]``, the task as far as it is known."""
    task = session.debuggee.guest.current_task(session.machine, vcpu)
    return f"vCPU {vcpu.index} [{task}]" if task else f"vCPU {vcpu.index}"


def _will_be_shown(session: Session) -> bool:
    """Whether somebody will look at what the vCPUs do. After each step GDB takes
    the list once to see whether threads have come or gone, and shows nothing of
    it; `info threads` asks again."""
    event = session.last_event
    first = event is not session.listed_event
    session.listed_event = event
    return not (first and event is not None and event.reason is StopReason.STEP)
