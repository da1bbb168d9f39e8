"""Letting the guest run: ``vCont``, ``c s C S``, ``vCtrlC``.

::

    vCont;s:p1.2;c:p1.-1            step vCPU 1, let the others run
    vCont;r1000,1010:p1.1           step vCPU 0 until it leaves the range

A guest has no signals: those that GDB passes on (``C``, ``S``) are dropped.
"""

from __future__ import annotations

import asyncio

from kvmgdb.errors import MachineError, UnsupportedError
from kvmgdb.machine.interface import Action, StopEvent, StopReason
from kvmgdb.rsp import stop_reply
from kvmgdb.rsp.debuggee import ResumeRequest
from kvmgdb.rsp.dispatch import OK, MalformedPacketError, Reply, packet, parse_hex, parse_range
from kvmgdb.rsp.session import Session
from kvmgdb.rsp.threads import parse_thread

_MAX_ACTIONS = 4096
_STEPS = (b"s", b"S", b"r")


@packet("vCont?", arguments=False)
def actions(session: Session, arguments: bytes) -> Reply:
    return Reply(b"vCont;c;C;s;S;t;r")


@packet("vCont;")
def resume(session: Session, arguments: bytes) -> Reply | None:
    """The first action that fits a vCPU counts; one that none fits stays stopped."""
    if not session.has_machine:
        return stop_reply.exited(session)
    count = len(session.machine.vcpus)
    chosen: dict[int, Action] = {}
    ranges: dict[int, tuple[int, int]] = {}
    stopped: set[int] = set()
    items = arguments.split(b";")
    if len(items) > _MAX_ACTIONS:
        raise MalformedPacketError("vCont;", arguments[:40])
    for item in items:
        text, colon, thread = item.partition(b":")
        if session.tasks.claims(thread):
            if text[:1] in _STEPS:
                session.console("kvmgdb: a sleeping task cannot be stepped: select a vCPU\n")
                return stop_reply.attached(session)
            continue
        number = parse_thread(thread, count, "vCont;") if colon else -1
        if number == 0:
            number = session.current_index + 1
        targets = range(count) if number < 0 else (number - 1,)
        action, limits = _parse_action(text)
        for index in targets:
            if index in chosen or index in stopped:
                continue
            if action is None:
                stopped.add(index)
                continue
            chosen[index] = action
            if limits is not None:
                ranges[index] = limits
    if not chosen:
        return stop_reply.attached(session)
    return _let_go(session, ResumeRequest(chosen, ranges))


def _parse_action(text: bytes) -> tuple[Action | None, tuple[int, int] | None]:
    """The action (None: stay stopped) and, for ``r``, its range."""
    verb, rest = text[:1], text[1:]
    if verb == b"r":
        return Action.STEP, parse_range(rest, "vCont;r")
    if verb in (b"C", b"S"):
        parse_hex(rest, "vCont;", 0x100)
    elif rest or verb not in (b"c", b"s", b"t"):
        raise MalformedPacketError("vCont;", text)
    if verb == b"t":
        return None, None
    return (Action.STEP if verb in (b"s", b"S") else Action.CONTINUE), None


@packet("c")
def continue_all(session: Session, arguments: bytes) -> Reply | None:
    """``c [addr]``, from clients that do not know ``vCont``."""
    return _resume_old(session, arguments, Action.CONTINUE)


@packet("s")
def step(session: Session, arguments: bytes) -> Reply | None:
    """``s [addr]``"""
    return _resume_old(session, arguments, Action.STEP)


@packet("C")
def continue_with_signal(session: Session, arguments: bytes) -> Reply | None:
    """``C sig [;addr]``"""
    parse_hex(arguments.partition(b";")[0], "C", 0x100)
    return _resume_old(session, arguments.partition(b";")[2], Action.CONTINUE)


@packet("S")
def step_with_signal(session: Session, arguments: bytes) -> Reply | None:
    """``S sig [;addr]``"""
    parse_hex(arguments.partition(b";")[0], "S", 0x100)
    return _resume_old(session, arguments.partition(b";")[2], Action.STEP)


def _resume_old(session: Session, address: bytes, action: Action) -> Reply | None:
    if not session.has_machine:
        return stop_reply.exited(session)
    count = len(session.machine.vcpus)
    index = session.continue_index
    stepped = session.current_index if index is None else index
    if address:
        value = parse_hex(address, "c")
        session.machine.vcpus[stepped].write_register("rip", value.to_bytes(8, "little"))
    running = [stepped] if action is Action.STEP or index is not None else range(count)
    chosen = dict.fromkeys(running, action)
    return _let_go(session, ResumeRequest(chosen, {}))


def _let_go(session: Session, request: ResumeRequest) -> Reply | None:
    """Resumes. A machine that cannot go on is a stop where it stands: GDB shows
    the reason, and keeps what it knows."""
    overdue = session.overdue()
    if overdue is not None:
        return overdue
    try:
        session.debuggee.resume(session, request)
    except MachineError as error:
        remedy = f" ({error.remedy})" if error.remedy else ""
        session.console(f"kvmgdb: {error}{remedy}\n")
        return stop_reply.build(session, StopEvent(StopReason.EXTERNAL, session.current_index))
    return None


@packet("vCtrlC", arguments=False)
def interrupt(session: Session, arguments: bytes) -> Reply:
    """An interrupt as a packet; its stop reply follows."""
    if session.debuggee.holds(session):
        raise UnsupportedError("the guest is stopped already")
    # A backend that stops at once would have its stop reply go out before the answer.
    asyncio.get_running_loop().call_soon(session.debuggee.interrupt, session)
    return OK
