"""Code that fills the processor's buffer of return addresses by calls that never
return (FILL_RETURN_BUFFER in arch/x86/include/asm/nospec-branch.h): tables of 6.1 do
not know what that pushes, and have rows of all variants of that code, of which one is
in use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from kvmgdb.errors import KvmgdbError, NotFoundError
from kvmgdb.linux.kernel import Kernel

# push of a 64-bit register, and what makes it a pop
_PUSH = re.compile(rb"\x41?[\x50-\x57]")
_POP_NOT_PUSH = 8
_MAX_SWITCH = 4096
_WORD = 8


def self_calling_code(kernel: Kernel) -> Iterator[tuple[range, int]]:
    """Ranges (GVA), and how many bytes above the stack pointer the caller's frame
    begins in all of a range, but for what is left of its own calls."""
    found = list(kernel.symbols.named("__switch_to_asm"))
    if len(found) != 1:
        return
    size = kernel.symbols.size_of(found[0].index)
    if not 0 < size <= _MAX_SWITCH:
        return
    start = found[0].address
    with suppress(KvmgdbError):
        body, words = _between_pushes_and_pops(kernel.read(start, size))
        yield range(start + body.start, start + body.stop), _WORD * (words + 1)


def _between_pushes_and_pops(text: bytes) -> tuple[range, int]:
    """What lies between the pushes that a function begins with and the pops that undo
    them, and how many they are. Raises NotFoundError."""
    registers = []
    at = 0
    while (match := _PUSH.match(text, at)) is not None:
        registers.append(match[0])
        at = match.end()
    pops = b"".join(push[:-1] + bytes([push[-1] + _POP_NOT_PUSH]) for push in reversed(registers))
    end = text.find(pops, at)
    if not registers or end < 0:
        raise NotFoundError("the function does not pop what it pushes")
    return range(at, end), len(registers)
