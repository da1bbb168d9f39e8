"""What is known of the guest's kernel: its modules, its place, its notes.

::

    qXfer:libraries:read::0,1000      -> the modules, as library-list
    qOffsets                          -> TextSeg=ffffffff9b000000
    qXfer:auxv:read::0,1000           -> l         a kernel has no auxiliary vector
    qXfer:vmcoreinfo:read::0,1000     -> the text of VMCOREINFO
    qlinux.vmcoreinfo                 -> Q<the same>      as kgdb has it
    qGetTLSAddr:p1.2,1f3c0,0          -> where a per-CPU variable lies on that vCPU
"""

from __future__ import annotations

from kvmgdb.errors import NotFoundError
from kvmgdb.linux.identity import read_vmcoreinfo_text
from kvmgdb.linux.tasks import cpu_of_vcpu
from kvmgdb.machine.native import rsp_frame_binary
from kvmgdb.rsp.commands.general import transfer
from kvmgdb.rsp.dispatch import UNSUPPORTED, MalformedPacketError, Reply, packet, parse_hex
from kvmgdb.rsp.guest import GS_BASES
from kvmgdb.rsp.session import Session
from kvmgdb.rsp.threads import parse_vcpu

_ADDRESS_MASK = (1 << 64) - 1


@packet("qXfer:libraries:read:")
def libraries(session: Session, arguments: bytes) -> Reply:
    annex, colon, window = arguments.partition(b":")
    if annex or not colon:
        return Reply(b"E00")
    text = session.guest_view.tell_libraries(first=window.startswith(b"0,"))
    return transfer(text.encode("utf-8"), window, "qXfer:libraries:read:")


@packet("qOffsets", arguments=False)
def offsets(session: Session, arguments: bytes) -> Reply:
    """Where the first segment of the kernel's file lies now. GDB moves the others of
    a vmlinux that its user gave it by as much: that undoes KASLR. It asks once, when
    it connects; scripts ask later, and take a target that answers for a program."""
    asked, session.asked_offsets = session.asked_offsets, True
    kernel = session.debuggee.guest.find(session.machine)
    if kernel is None or asked:
        return UNSUPPORTED
    return Reply(b"TextSeg=%x" % kernel.base)


@packet("qXfer:auxv:read:")
def auxiliary_vector(session: Session, arguments: bytes) -> Reply:
    annex, colon, window = arguments.partition(b":")
    if annex or not colon:
        return Reply(b"E00")
    return transfer(b"", window, "qXfer:auxv:read:")


@packet("qXfer:vmcoreinfo:read:")
def vmcoreinfo(session: Session, arguments: bytes) -> Reply:
    """Not GDB's: other debuggers of kernels ask for it."""
    annex, colon, window = arguments.partition(b":")
    if annex or not colon:
        return Reply(b"E00")
    return transfer(_vmcoreinfo(session), window, "qXfer:vmcoreinfo:read:")


@packet("qlinux.vmcoreinfo", arguments=False)
def vmcoreinfo_at_once(session: Session, arguments: bytes) -> Reply:
    """As kernels with kgdb answer it to drgn."""
    return Reply(framed=rsp_frame_binary(b"Q", _vmcoreinfo(session), runs=False))


def _vmcoreinfo(session: Session) -> bytes:
    kernel = session.debuggee.guest.find(session.machine)
    if kernel is None:
        raise NotFoundError(session.debuggee.guest.why_not)
    return read_vmcoreinfo_text(kernel)


@packet("qGetTLSAddr:")
def per_cpu_address(session: Session, arguments: bytes) -> Reply:
    """``qGetTLSAddr:<thread>,<offset>,<load module>``: the kernel's per-CPU data are
    to a vCPU what a program's TLS is to its thread."""
    fields = arguments.split(b",")
    if len(fields) != 3:
        raise MalformedPacketError("qGetTLSAddr:", arguments)
    vcpu = session.machine.vcpus[parse_vcpu(fields[0], len(session.machine.vcpus), "qGetTLSAddr:")]
    kernel = session.debuggee.guest.find(session.machine)
    if kernel is None:
        raise NotFoundError(session.debuggee.guest.why_not)
    registers = vcpu.read_registers(GS_BASES)
    cpu = cpu_of_vcpu(kernel, registers.get("gs_base"), registers.get("k_gs_base"))
    if cpu is None:
        raise NotFoundError("it cannot be told which CPU of the guest's kernel this vCPU is")
    offset = parse_hex(fields[1], "qGetTLSAddr:")
    return Reply(b"%x" % (offset + kernel.cpu_offsets[cpu] & _ADDRESS_MASK))
