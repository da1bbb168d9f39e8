"""Where the caller's address is in code that unwind tables do not describe.

A thunk (arch/x86/lib/retpoline.S) jumps to where a register points; built as a
retpoline, it calls into itself, puts the register over the address that this has
pushed, and returns to it: the tables' rule for the last step leads to the function
that is about to be called. Entry code that is not on a task's stack (arch/x86/entry)
has user mode above it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from kvmgdb.errors import KvmgdbError, NotFoundError
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.native import Code
from kvmgdb.linux.stacks import symbol_size
from kvmgdb.linux.undescribed import undescribed_code
from kvmgdb.symbols.native import CodeRule, RuleKind

_ENTRIES = {Code.SYSCALL: RuleKind.SYSCALL, Code.IRET: RuleKind.IRET}
_CALL = 0xE8
# push of a 64-bit register, and what makes it a pop
_PUSH = re.compile(rb"\x41?[\x50-\x57]")
_POP_NOT_PUSH = 8
_MAX_SWITCH = 4096
_CALL_LENGTH = 5
_WORD = 8


def code_rules(kernel: Kernel) -> list[CodeRule]:
    """Rules for all thunks and entries that the kernel has, by rising address."""
    rules = _self_callers(kernel)
    for run, code in sorted(undescribed_code(kernel.symbols), key=lambda found: found[0].start):
        if code in _ENTRIES:
            rules.append(CodeRule(run, _ENTRIES[code]))
        if code is not Code.THUNK:
            continue
        try:
            text = kernel.read(run.start, len(run))
        except KvmgdbError:
            continue
        for start, end in _symbols(kernel, run):
            rules += _thunk(start, text[start - run.start : end - run.start])
    return sorted(rules, key=lambda rule: rule.code.start)


def _self_callers(kernel: Kernel) -> list[CodeRule]:
    """Code that fills the processor's buffer of return addresses by calls that never
    return (FILL_RETURN_BUFFER): tables of 6.1 do not know what that pushes, and have
    rows of all variants of that code, of which one is in use."""
    found = list(kernel.symbols.named("__switch_to_asm"))
    if len(found) != 1:
        return []
    size = symbol_size(kernel.symbols, found[0].index)
    if not 0 < size <= _MAX_SWITCH:
        return []
    start = found[0].address
    with suppress(KvmgdbError):
        body, words = _between_pushes_and_pops(kernel.read(start, size))
        code = range(start + body.start, start + body.stop)
        return [CodeRule(code, RuleKind.CALLS_ITSELF, _WORD * (words + 1))]
    return []


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


def _symbols(kernel: Kernel, run: range) -> Iterator[tuple[int, int]]:
    found = kernel.symbols.at(run.start)
    start = run.start
    index = found.index if found else len(kernel.symbols)
    while start < run.stop:
        index += 1
        end = kernel.symbols[index].address if index < len(kernel.symbols) else run.stop
        end = min(end, run.stop)
        if end > start:
            yield start, end
        start = max(start, end)


def _thunk(start: int, text: bytes) -> list[CodeRule]:
    end = start + len(text)
    if text[:1] != bytes([_CALL]) or len(text) <= _CALL_LENGTH:
        return [CodeRule(range(start, end), cfa_offset=_WORD)]
    called = start + _CALL_LENGTH
    return [
        CodeRule(range(start, called), cfa_offset=_WORD),
        CodeRule(range(called, end), RuleKind.CALL_ALWAYS, 2 * _WORD),
    ]
