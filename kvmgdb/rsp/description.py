"""The target description (GDB manual, appendix G): one for all machines.

Always 64-bit and always the same registers, in the order of
:mod:`kvmgdb.machine.registers`; what a machine does not know is sent as
unavailable. It has no ``osabi``: with one, GDB would look for a C library in
the guest.
"""

from __future__ import annotations

from functools import cache
from itertools import groupby

from kvmgdb.machine.registers import (
    CORE,
    CR0,
    CR4,
    EFER,
    EFLAGS,
    MXCSR,
    REGISTERS,
    SSE,
    SYSTEM,
    FlagsType,
    Register,
)

# vec128 as in gdb/features/i386/64bit-sse.xml, so that GDB shows XMM registers
# as it does for a program.
_VEC128 = (
    '<vector id="v8b" type="int8" count="8"/>'
    '<vector id="v4f" type="ieee_single" count="4"/>'
    '<vector id="v2d" type="ieee_double" count="2"/>'
    '<vector id="v16i8" type="int8" count="16"/>'
    '<vector id="v8i16" type="int16" count="8"/>'
    '<vector id="v4i32" type="int32" count="4"/>'
    '<vector id="v2i64" type="int64" count="2"/>'
    '<union id="vec128">'
    '<field name="v4_float" type="v4f"/>'
    '<field name="v2_double" type="v2d"/>'
    '<field name="v16_int8" type="v16i8"/>'
    '<field name="v8_int16" type="v8i16"/>'
    '<field name="v4_int32" type="v4i32"/>'
    '<field name="v2_int64" type="v2i64"/>'
    '<field name="uint128" type="uint128"/>'
    "</union>"
)
_FLAGS: dict[str, tuple[FlagsType, ...]] = {
    CORE: (EFLAGS,),
    SSE: (MXCSR,),
    SYSTEM: (CR0, CR4, EFER),
}


def _register(register: Register) -> str:
    group = f' group="{register.group}"' if register.group else ""
    return (
        f'<reg name="{register.name}" bitsize="{8 * register.size}" type="{register.type}" '
        f'regnum="{register.number}"{group}/>'
    )


def _features() -> list[tuple[str, list[Register]]]:
    """Registers by feature; a feature comes once, where its first register is."""
    order = {
        feature: index
        for index, feature in enumerate(dict.fromkeys(register.feature for register in REGISTERS))
    }
    ordered = sorted(REGISTERS, key=lambda register: (order[register.feature], register.number))
    return [
        (feature, list(registers))
        for feature, registers in groupby(ordered, key=lambda register: register.feature)
    ]


@cache
def target_description() -> str:
    """``target.xml``: the whole description in one document."""
    parts = [
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">',
        "<architecture>i386:x86-64</architecture>",
    ]
    for feature, registers in _features():
        parts.append(f'<feature name="{feature}">')
        parts += [flags.xml for flags in _FLAGS.get(feature, ())]
        if feature == SSE:
            parts.append(_VEC128)
        parts += [_register(register) for register in registers]
        parts.append("</feature>")
    parts.append("</target>")
    return "".join(parts)
