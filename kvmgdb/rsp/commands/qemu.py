"""QEMU's extensions, which pwndbg, GEF and kernel scripts use.

::

    qqemu.PhyMemMode      -> 0 or 1;        Qqemu.PhyMemMode:1   addresses are guest-physical
    qqemu.sstepbits       -> ENABLE=1,NOIRQ=2,NOTIMER=4
    qqemu.sstep           -> 0x7;           Qqemu.sstep=7
"""

from __future__ import annotations

from kvmgdb.errors import UnsupportedError
from kvmgdb.machine.interface import StepAbility
from kvmgdb.rsp.dispatch import OK, MalformedPacketError, Reply, packet, parse_hex
from kvmgdb.rsp.session import Session


@packet("qqemu.PhyMemMode", arguments=False)
def physical_memory_mode(session: Session, arguments: bytes) -> Reply:
    return Reply(b"1" if session.physical_memory else b"0")


@packet("Qqemu.PhyMemMode:")
def set_physical_memory_mode(session: Session, arguments: bytes) -> Reply:
    if arguments not in (b"0", b"1"):
        raise MalformedPacketError("Qqemu.PhyMemMode:", arguments)
    if arguments == b"1" and session.machine.memory is None:
        raise UnsupportedError("guest-physical memory cannot be reached through this target")
    session.physical_memory = arguments == b"1"
    return OK


# Scripts tell QEMU's stub by its answer to the second form, which it takes, too.
@packet("qqemu.sstepbits", arguments=False)
@packet("Qqemu.sstepbits", arguments=False)
def step_bits(session: Session, arguments: bytes) -> Reply:
    _stepping(session)
    return Reply(
        f"ENABLE={StepAbility.ENABLE},NOIRQ={StepAbility.NO_IRQ},"
        f"NOTIMER={StepAbility.NO_TIMER}".encode("ascii")
    )


@packet("qqemu.sstep", arguments=False)
@packet("Qqemu.sstep", arguments=False)
def step_flags(session: Session, arguments: bytes) -> Reply:
    return Reply(b"0x%x" % _stepping(session).step_flags())


@packet("Qqemu.sstep")
def set_step_flags(session: Session, arguments: bytes) -> Reply:
    """``Qqemu.sstep=<flags>`` (GDB users also write ``Qqemu.sstep:<flags>``)."""
    if arguments[:1] not in (b"=", b":"):
        raise MalformedPacketError("Qqemu.sstep", arguments)
    stepping = _stepping(session)
    flags = parse_hex(arguments[1:].removeprefix(b"0x"), "Qqemu.sstep")
    if flags & ~stepping.supported_step_flags():
        raise UnsupportedError(f"this target does not know the step flags {flags:#x}")
    stepping.set_step_flags(flags)
    return OK


def _stepping(session: Session) -> StepAbility:
    stepping = session.machine.stepping
    if stepping is None:
        raise UnsupportedError("this target cannot change what a step does to interrupts")
    return stepping
