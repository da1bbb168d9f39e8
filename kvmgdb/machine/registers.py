"""The registers of an x86-64 vCPU: one fixed layout, used by every backend.

A :class:`RegisterFile` is the raw bytes of all registers in the order in which
GDB's ``g`` packet carries them, and which of them are known. What a backend
does not know stays unknown: no value is made up.

Order and sizes follow GDB's standard features ``org.gnu.gdb.i386.core``,
``.sse``, ``.segments`` and ``.avx`` (gdb/features/i386/), then our own:
control registers under the names that QEMU's stub uses (pwndbg, GEF and kernel
scripts know them), and what only some backends know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property


class Group(Enum):
    """What a register belongs to: the unit in which backends fetch them."""

    GENERAL = "general"
    FPU = "fpu"
    SSE = "sse"
    SEGMENT = "segment"
    KERNEL_GS = "kernel gs"
    CONTROL = "control"
    AVX = "avx"
    DESCRIPTOR = "descriptor"
    DEBUG = "debug"
    MSR = "msr"


@dataclass(frozen=True, slots=True)
class Register:
    """One register: ``size`` in bytes, ``offset`` into the register file.

    ``type`` and ``group`` are those of GDB's target description; ``unit`` is
    ours. ``number`` is GDB's register number.
    """

    name: str
    number: int
    size: int
    offset: int
    type: str
    feature: str
    unit: Group
    group: str | None = None
    msr: int | None = None


CORE = "org.gnu.gdb.i386.core"
SSE = "org.gnu.gdb.i386.sse"
SEGMENTS = "org.gnu.gdb.i386.segments"
AVX = "org.gnu.gdb.i386.avx"
SYSTEM = "org.kvmgdb.x86.system"

# Model-specific registers (SDM volume 4): name -> index. Backends that can read
# MSRs use the index; the others leave them unknown. The first has its place
# among the segment registers. None that counts by itself is here: GDB writes
# back what it has read when it calls a function of the guest.
MSRS: dict[str, int] = {
    "k_gs_base": 0xC0000102,
    "lstar": 0xC0000082,
    "star": 0xC0000081,
    "cstar": 0xC0000083,
    "sfmask": 0xC0000084,
    "tsc_aux": 0xC0000103,
    "sysenter_cs": 0x174,
    "sysenter_esp": 0x175,
    "sysenter_eip": 0x176,
    "apic_base": 0x1B,
    "pat": 0x277,
    "misc_enable": 0x1A0,
}

_SELECTORS = ("cs", "ss", "ds", "es", "fs", "gs")
_GENERAL = (
    "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15".split()  # noqa: SIM905
)
_FPU_CONTROL = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")

_Spec = tuple[str, int, str, str, Group, str | None]


def _specs() -> Iterator[_Spec]:
    for name in _GENERAL:
        kind = "data_ptr" if name in ("rbp", "rsp") else "int64"
        yield name, 8, kind, CORE, Group.GENERAL, None
    yield "rip", 8, "code_ptr", CORE, Group.GENERAL, None
    yield "eflags", 4, "i386_eflags", CORE, Group.GENERAL, None
    for name in _SELECTORS:
        yield name, 4, "int32", CORE, Group.GENERAL, None
    for index in range(8):
        yield f"st{index}", 10, "i387_ext", CORE, Group.FPU, None
    for name in _FPU_CONTROL:
        yield name, 4, "int", CORE, Group.FPU, "float"
    for index in range(16):
        yield f"xmm{index}", 16, "vec128", SSE, Group.SSE, None
    yield "mxcsr", 4, "i386_mxcsr", SSE, Group.SSE, "vector"
    for name in ("fs_base", "gs_base"):
        yield name, 8, "int64", SEGMENTS, Group.SEGMENT, None
    yield "k_gs_base", 8, "int64", SYSTEM, Group.KERNEL_GS, "system"
    yield "cr0", 8, "kvmgdb_cr0", SYSTEM, Group.CONTROL, "system"
    yield "cr2", 8, "data_ptr", SYSTEM, Group.CONTROL, "system"
    yield "cr3", 8, "int64", SYSTEM, Group.CONTROL, "system"
    yield "cr4", 8, "kvmgdb_cr4", SYSTEM, Group.CONTROL, "system"
    yield "cr8", 8, "int64", SYSTEM, Group.CONTROL, "system"
    yield "efer", 8, "kvmgdb_efer", SYSTEM, Group.CONTROL, "system"
    for index in range(16):
        yield f"ymm{index}h", 16, "uint128", AVX, Group.AVX, None
    for name in ("cs", "ss", "ds", "es"):
        yield f"{name}_base", 8, "int64", SYSTEM, Group.DESCRIPTOR, "system"
    for name in _SELECTORS:
        yield f"{name}_limit", 4, "uint32", SYSTEM, Group.DESCRIPTOR, "system"
    for name in ("ldtr", "tr"):
        yield name, 4, "int32", SYSTEM, Group.DESCRIPTOR, "system"
    for name in ("ldtr", "tr", "gdtr", "idtr"):
        yield f"{name}_base", 8, "data_ptr", SYSTEM, Group.DESCRIPTOR, "system"
        yield f"{name}_limit", 4, "uint32", SYSTEM, Group.DESCRIPTOR, "system"
    for index in (0, 1, 2, 3, 6, 7):
        yield f"dr{index}", 8, "int64", SYSTEM, Group.DEBUG, "system"
    for name in list(MSRS)[1:]:
        yield name, 8, "int64", SYSTEM, Group.MSR, "system"


def _build() -> tuple[Register, ...]:
    registers = []
    offset = 0
    for number, (name, size, kind, feature, unit, group) in enumerate(_specs()):
        registers.append(
            Register(name, number, size, offset, kind, feature, unit, group, MSRS.get(name))
        )
        offset += size
    return tuple(registers)


REGISTERS: tuple[Register, ...] = _build()
BY_NAME: dict[str, Register] = {register.name: register for register in REGISTERS}
FILE_SIZE: int = REGISTERS[-1].offset + REGISTERS[-1].size

# What every stop needs and every backend has at hand.
BASIC_GROUPS = frozenset({Group.GENERAL, Group.SEGMENT, Group.CONTROL})
# What a ``g`` reply holds: these come first in the layout. GDB asks for the
# others one by one with ``p``.
STOP_GROUPS = BASIC_GROUPS | {Group.FPU, Group.SSE, Group.KERNEL_GS}
STOP_REGISTERS: tuple[Register, ...] = tuple(r for r in REGISTERS if r.unit in STOP_GROUPS)
STOP_SIZE: int = STOP_REGISTERS[-1].offset + STOP_REGISTERS[-1].size


class RegisterFile:
    """Registers of one vCPU at one moment.

    ``raw`` holds the layout's bytes, little-endian; ``known`` one byte per
    register, 1 where the value is the vCPU's.
    """

    __slots__ = ("known", "raw")

    def __init__(self) -> None:
        self.raw = bytearray(FILE_SIZE)
        self.known = bytearray(len(REGISTERS))

    def get(self, name: str) -> int | None:
        """The value as an unsigned integer, or None where it is not known."""
        register = BY_NAME[name]
        if not self.known[register.number]:
            return None
        return int.from_bytes(self.raw[register.offset : register.offset + register.size], "little")

    def get_bytes(self, register: Register) -> bytes | None:
        if not self.known[register.number]:
            return None
        return bytes(self.raw[register.offset : register.offset + register.size])

    def set(self, name: str, value: int) -> None:
        register = BY_NAME[name]
        mask = (1 << (8 * register.size)) - 1
        self.set_bytes(register, (value & mask).to_bytes(register.size, "little"))

    def set_bytes(self, register: Register, data: bytes) -> None:
        """Stores ``data``, widened with zeros or cut to the register's size."""
        data = data[: register.size].ljust(register.size, b"\0")
        self.raw[register.offset : register.offset + register.size] = data
        self.known[register.number] = 1

    def forget(self, registers: Iterable[Register]) -> None:
        for register in registers:
            self.known[register.number] = 0


@dataclass(frozen=True)
class FlagField:
    """A named bit, or bits ``start`` to ``end``, of a flags type."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class FlagsType:
    """A flags type of the target description; ``size`` in bytes."""

    id: str
    size: int
    fields: tuple[FlagField, ...]

    @cached_property
    def xml(self) -> str:
        lines = [f'<flags id="{self.id}" size="{self.size}">']
        lines += [
            f'<field name="{field.name}" start="{field.start}" end="{field.end}"/>'
            for field in self.fields
        ]
        return "".join(lines) + "</flags>"


def _flags(identifier: str, size: int, bits: str) -> FlagsType:
    fields = []
    for item in bits.split():
        name, _, position = item.partition(":")
        start, _, end = position.partition("-")
        fields.append(FlagField(name, int(start), int(end or start)))
    return FlagsType(identifier, size, tuple(fields))


# SDM volume 1, 3.4.3 and 10.2.3; volume 3, 2.2.1 and 2.5.
EFLAGS = _flags(
    "i386_eflags",
    4,
    ":1 CF:0 PF:2 AF:4 ZF:6 SF:7 TF:8 IF:9 DF:10 OF:11 IOPL:12-13 NT:14 RF:16 VM:17 "
    "AC:18 VIF:19 VIP:20 ID:21",
)
MXCSR = _flags(
    "i386_mxcsr",
    4,
    "IE:0 DE:1 ZE:2 OE:3 UE:4 PE:5 DAZ:6 IM:7 DM:8 ZM:9 OM:10 UM:11 PM:12 FZ:15",
)
CR0 = _flags("kvmgdb_cr0", 8, "PE:0 MP:1 EM:2 TS:3 ET:4 NE:5 WP:16 AM:18 NW:29 CD:30 PG:31")
CR4 = _flags(
    "kvmgdb_cr4",
    8,
    "VME:0 PVI:1 TSD:2 DE:3 PSE:4 PAE:5 MCE:6 PGE:7 PCE:8 OSFXSR:9 OSXMMEXCPT:10 UMIP:11 "
    "LA57:12 VMXE:13 SMXE:14 FSGSBASE:16 PCIDE:17 OSXSAVE:18 KL:19 SMEP:20 SMAP:21 PKE:22 "
    "CET:23 PKS:24 UINTR:25",
)
EFER = _flags("kvmgdb_efer", 8, "SCE:0 LME:8 LMA:10 NXE:11 SVME:12 LMSLE:13 FFXSR:14 TCE:15")
