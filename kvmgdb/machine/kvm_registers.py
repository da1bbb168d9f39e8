"""KVM's register structures (include/uapi/asm/kvm.h), to and from our layout.

Each class holds one structure as KVM fills it and names its fields as the
header does.
"""

from __future__ import annotations

import struct

from kvmgdb.machine.registers import BY_NAME, MSRS, Group, RegisterFile

_REGS = (
    "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip eflags".split()  # noqa: SIM905
)
REGS_SIZE = 8 * len(_REGS)

_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr")
_SEGMENT = struct.Struct("<QIH10B")
_TABLES = ("gdtr", "idtr")
_TABLE = struct.Struct("<QH6x")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
_TABLES_AT = _SEGMENT.size * len(_SEGMENTS)
_CONTROL_AT = _TABLES_AT + _TABLE.size * len(_TABLES)
# Behind the control registers: apic_base and interrupt_bitmap[4].
SREGS_SIZE = _CONTROL_AT + 8 * len(_CONTROL) + 8 + 32

_FPU = struct.Struct("<128sHHBxHQQ256sIxxxx")
FPU_SIZE = _FPU.size

XSAVE_SIZE = 4096
_XSTATE_BV = 512
_YMM_HIGH = 576
_AVX_BIT = 1 << 2

XCRS_SIZE = 392
_XCR0_VALUE_AT = 16

DEBUGREGS_SIZE = 128
_DEBUG = ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")

_MSRS_HEAD = struct.Struct("<II")
_MSR_ENTRY = struct.Struct("<IIQ")


def decode_regs(data: bytes, into: RegisterFile) -> None:
    """``struct kvm_regs``."""
    for index, name in enumerate(_REGS):
        into.set_bytes(BY_NAME[name], data[8 * index : 8 * index + 8])


def patch_regs(data: bytes, name: str, value: int) -> bytes:
    """``struct kvm_regs`` with one register changed."""
    offset = 8 * _REGS.index(name)
    return data[:offset] + value.to_bytes(8, "little") + data[offset + 8 :]


def decode_sregs(data: bytes, into: RegisterFile) -> None:
    """``struct kvm_sregs``: segments, descriptor tables, control registers."""
    for index, name in enumerate(_SEGMENTS):
        base, limit, selector, *_ = _SEGMENT.unpack_from(data, index * _SEGMENT.size)
        into.set(name, selector)
        into.set(f"{name}_base", base)
        into.set(f"{name}_limit", limit)
    for index, name in enumerate(_TABLES):
        base, limit = _TABLE.unpack_from(data, _TABLES_AT + index * _TABLE.size)
        into.set(f"{name}_base", base)
        into.set(f"{name}_limit", limit)
    for index, name in enumerate(_CONTROL):
        offset = _CONTROL_AT + 8 * index
        into.set_bytes(BY_NAME[name], data[offset : offset + 8])


def patch_sregs(data: bytes, name: str, value: int) -> bytes | None:
    """``struct kvm_sregs`` with one register changed, or None where ``name`` is
    not one that can be changed alone: a selector brings a whole descriptor."""
    if name in _CONTROL:
        offset = _CONTROL_AT + 8 * _CONTROL.index(name)
    elif name.endswith("_base") and name.removesuffix("_base") in _SEGMENTS:
        offset = _SEGMENTS.index(name.removesuffix("_base")) * _SEGMENT.size
    elif name.endswith("_base") and name.removesuffix("_base") in _TABLES:
        offset = _TABLES_AT + _TABLES.index(name.removesuffix("_base")) * _TABLE.size
    else:
        return None
    return data[:offset] + value.to_bytes(8, "little") + data[offset + 8 :]


def patch_real_mode_segment(data: bytes, name: str, selector: int) -> bytes:
    """``struct kvm_sregs`` with a segment loaded as real mode does."""
    offset = _SEGMENTS.index(name) * _SEGMENT.size
    _, limit, _, *rest = _SEGMENT.unpack_from(data, offset)
    entry = _SEGMENT.pack((selector & 0xFFFF) << 4, limit, selector & 0xFFFF, *rest)
    return data[:offset] + entry + data[offset + _SEGMENT.size :]


def decode_fpu(data: bytes, into: RegisterFile) -> None:
    """``struct kvm_fpu``."""
    fpr, fcw, fsw, ftwx, opcode, ip, dp, xmm, mxcsr = _FPU.unpack(data[:FPU_SIZE])
    for index in range(8):
        into.set_bytes(BY_NAME[f"st{index}"], fpr[16 * index : 16 * index + 10])
    into.set("fctrl", fcw)
    into.set("fstat", fsw)
    into.set("ftag", _full_tag(ftwx, fsw, fpr))
    into.set("fiseg", ip >> 32)
    into.set("fioff", ip & 0xFFFFFFFF)
    into.set("foseg", dp >> 32)
    into.set("fooff", dp & 0xFFFFFFFF)
    into.set("fop", opcode)
    for index in range(16):
        into.set_bytes(BY_NAME[f"xmm{index}"], xmm[16 * index : 16 * index + 16])
    into.set("mxcsr", mxcsr)


def patch_fpu(data: bytes, name: str, value: int) -> bytes | None:
    """``struct kvm_fpu`` with one register changed, or None where it cannot be."""
    fpr, fcw, fsw, ftwx, opcode, ip, dp, xmm, mxcsr = _FPU.unpack(data[:FPU_SIZE])
    if name.startswith("st"):
        offset = 16 * int(name[2:])
        fpr = fpr[:offset] + value.to_bytes(10, "little") + fpr[offset + 10 :]
    elif name.startswith("xmm"):
        offset = 16 * int(name[3:])
        xmm = xmm[:offset] + value.to_bytes(16, "little") + xmm[offset + 16 :]
    elif name == "mxcsr":
        mxcsr = value
    elif name == "fctrl":
        fcw = value & 0xFFFF
    elif name == "fstat":
        fsw = value & 0xFFFF
    else:
        return None
    return _FPU.pack(fpr, fcw, fsw, ftwx, opcode, ip, dp, xmm, mxcsr)


def _full_tag(abridged: int, fsw: int, fpr: bytes) -> int:
    """The 16-bit tag word from FXSAVE's 8-bit one (SDM volume 1, 10.5.1.1)."""
    top = fsw >> 11 & 7
    tag = 0
    for physical in range(8):
        if not abridged >> physical & 1:
            kind = 3
        else:
            offset = 16 * ((physical - top) & 7)
            significand = int.from_bytes(fpr[offset : offset + 8], "little")
            exponent = int.from_bytes(fpr[offset + 8 : offset + 10], "little") & 0x7FFF
            if exponent == 0x7FFF or (exponent and not significand >> 63):
                kind = 2
            elif exponent == 0:
                kind = 1 if significand == 0 else 2
            else:
                kind = 0
        tag |= kind << (2 * physical)
    return tag


def decode_avx(xsave: bytes, xcrs: bytes, into: RegisterFile) -> None:
    """The upper halves of YMM from ``struct kvm_xsave`` (standard format), where
    XCR0 in ``struct kvm_xcrs`` enables AVX."""
    xcr0 = int.from_bytes(xcrs[_XCR0_VALUE_AT : _XCR0_VALUE_AT + 8], "little")
    if not xcr0 & _AVX_BIT:
        return
    in_use = int.from_bytes(xsave[_XSTATE_BV : _XSTATE_BV + 8], "little") & _AVX_BIT
    for index in range(16):
        offset = _YMM_HIGH + 16 * index
        # A component that is not in use is in its initial state: zero.
        value = xsave[offset : offset + 16] if in_use else bytes(16)
        into.set_bytes(BY_NAME[f"ymm{index}h"], value)


def decode_debugregs(data: bytes, into: RegisterFile) -> None:
    """``struct kvm_debugregs``."""
    for index, name in enumerate(_DEBUG):
        into.set_bytes(BY_NAME[name], data[8 * index : 8 * index + 8])


def encode_msrs(names: list[str], values: list[int] | None = None) -> bytes:
    """``struct kvm_msrs`` for the named MSRs."""
    entries = [
        _MSR_ENTRY.pack(MSRS[name], 0, values[index] if values else 0)
        for index, name in enumerate(names)
    ]
    return _MSRS_HEAD.pack(len(names), 0) + b"".join(entries)


def decode_msrs(data: bytes, names: list[str], into: RegisterFile) -> int:
    """Stores the MSRs that KVM read, which may be fewer than asked for; returns
    how many."""
    count = min(int(_MSRS_HEAD.unpack_from(data)[0]), len(names))
    for index in range(count):
        _, _, value = _MSR_ENTRY.unpack_from(data, _MSRS_HEAD.size + index * _MSR_ENTRY.size)
        into.set(names[index], value)
    return count


def msr_names(groups: frozenset[Group]) -> list[str]:
    """The MSRs that belong to any of the groups."""
    return [name for name in MSRS if BY_NAME[name].unit in groups]
