"""Registers that QEMU's stub does not have, from its monitor's ``info registers``.

The text is that of ``x86_cpu_dump_state`` (target/i386/cpu-dump.c). What a line
does not hold stays unknown.
"""

from __future__ import annotations

import re

from kvmgdb.machine.registers import BY_NAME, Group, RegisterFile

# What only the monitor knows.
MONITOR_GROUPS = frozenset({Group.AVX, Group.DESCRIPTOR, Group.DEBUG})

# "CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]"
_SEGMENT = re.compile(
    r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *=([0-9a-f]{4}) ([0-9a-f]{8,16}) ([0-9a-f]{8})\b", re.M
)
# "GDT=     fffffe0000001000 0000007f"
_TABLE = re.compile(r"^(GDT|IDT)= +([0-9a-f]{8,16}) ([0-9a-f]{8})\b", re.M)
_DEBUG = re.compile(r"\bDR([0-7])=([0-9a-f]{8,16})\b")
# "YMM00=" and "ZMM00=" list 64-bit words, the most significant first.
_VECTOR = re.compile(r"^[YZ]MM(\d\d)=((?:[0-9a-f]{16} ?)+)$", re.M)


def decode_info_registers(text: str, into: RegisterFile) -> None:
    """Stores what ``info registers`` of one vCPU says into ``into``."""
    for name, selector, base, limit in _SEGMENT.findall(text):
        key = {"LDT": "ldtr"}.get(name, name.lower())
        if key in ("ldtr", "tr"):
            into.set(key, int(selector, 16))
        if key not in ("fs", "gs"):
            into.set(f"{key}_base", int(base, 16))
        into.set(f"{key}_limit", int(limit, 16))
    for name, base, limit in _TABLE.findall(text):
        key = name.lower() + "r"
        into.set(f"{key}_base", int(base, 16))
        into.set(f"{key}_limit", int(limit, 16))
    for number, value in _DEBUG.findall(text):
        if f"dr{number}" in BY_NAME:
            into.set(f"dr{number}", int(value, 16))
    for number, words in _VECTOR.findall(text):
        values = words.split()
        name = f"ymm{int(number)}h"
        if len(values) >= 4 and name in BY_NAME:
            into.set(name, int(values[-4] + values[-3], 16))
