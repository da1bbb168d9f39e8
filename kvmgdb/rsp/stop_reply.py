"""Stop replies.

::

    T05 thread:p1.2; core:1; swbreak:; 10:<rip>; 07:<rsp>; ...
    T05 thread:p1.2; core:1; library:;      (kvmgdb.rsp.guest_view)
    W00;process:1    the machine is gone

Beside the reason they carry the registers that GDB asks for next, so that it does
not have to: those by which it finds the frame, on every stop. More would cost it
more to take in than one `g` packet does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmgdb.machine.interface import BreakpointKind, StopEvent, StopReason, Vcpu
from kvmgdb.machine.registers import BASIC_GROUPS, BY_NAME
from kvmgdb.rsp.dispatch import Reply
from kvmgdb.rsp.threads import PROCESS, format_thread

if TYPE_CHECKING:
    from kvmgdb.rsp.session import Session

_SIGINT, _SIGQUIT, _SIGTRAP = 2, 3, 5
_SIGNALS = {
    StopReason.REQUEST: _SIGINT,
    StopReason.EXTERNAL: _SIGINT,
    StopReason.SHUTDOWN: _SIGQUIT,
}
_WATCH_WORDS = {
    BreakpointKind.WRITE: "watch",
    BreakpointKind.READ: "rwatch",
    BreakpointKind.ACCESS: "awatch",
}
_EXPEDITED = tuple(
    BY_NAME[name] for name in ("rip", "rsp", "rbp", "eflags", "cs", "ss", "fs_base", "gs_base")
)


def build(session: Session, event: StopEvent) -> Reply:
    """The reply that tells ``session`` of a stop."""
    if event.reason is StopReason.EXITED:
        return exited(session)
    machine = session.machine
    vcpu = machine.vcpus[event.vcpu if event.vcpu < len(machine.vcpus) else 0]
    text = f"T{_SIGNALS.get(event.reason, _SIGTRAP):02x}"
    text += f"thread:{format_thread(session, vcpu.index)};core:{vcpu.index:x};"
    return Reply((text + _reason(session, event, vcpu) + _registers(vcpu)).encode("ascii"))


def build_news(session: Session, index: int, news: str) -> Reply:
    """The reply that tells ``session`` of what is no stop: ``library:;``, ``exec:...;``."""
    thread = format_thread(session, index)
    return Reply(f"T{_SIGTRAP:02x}thread:{thread};core:{index:x};{news}".encode("ascii"))


def attached(session: Session) -> Reply:
    """The answer to ``?``: where the guest stands, with no event behind it."""
    if not session.has_machine:
        return exited(session)
    return build(session, StopEvent(StopReason.STEP, session.current_index))


def exited(session: Session) -> Reply:
    if "multiprocess" in session.features:
        return Reply(b"W00;process:%x" % PROCESS)
    return Reply(b"W00")


def _reason(session: Session, event: StopEvent, vcpu: Vcpu) -> str:
    if event.reason is StopReason.WATCHPOINT and event.watch and event.address is not None:
        return f"{_WATCH_WORDS[event.watch]}:{event.address:x};"
    if event.reason in (StopReason.BREAKPOINT, StopReason.HARDWARE_BREAKPOINT):
        kinds = session.debuggee.breakpoint_kinds(session, event.address)
        if BreakpointKind.SOFTWARE in kinds and "swbreak" in session.features:
            return "swbreak:;"
        if BreakpointKind.HARDWARE in kinds and "hwbreak" in session.features:
            return "hwbreak:;"
    return ""


def _registers(vcpu: Vcpu) -> str:
    file = vcpu.read_registers(BASIC_GROUPS)
    text = file.raw.hex()
    known = file.known
    return "".join(
        [
            f"{r.number:02x}:{text[2 * r.offset : 2 * (r.offset + r.size)]};"
            for r in _EXPEDITED
            if known[r.number]
        ]
    )
