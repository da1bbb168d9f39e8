"""Where the caller's address is in code that unwind tables do not describe.

Unwind tables have no rules for most of it (arch/x86/lib/retpoline.S). A thunk
jumps to where a register points; built as a retpoline, it calls into itself, puts
the register over the address that this has pushed, and returns to it: the tables'
rule for the last step leads to the function that is about to be called.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvmgdb.errors import KvmgdbError
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.native import Code
from kvmgdb.linux.stacks import symbol_size
from kvmgdb.linux.undescribed import undescribed_code
from kvmgdb.symbols.native import CallRule

_CALL = 0xE8
_MAX_SWITCH = 4096
_CALL_LENGTH = 5
_WORD = 8


def thunk_rules(kernel: Kernel) -> list[CallRule]:
    """Rules for all thunks that the kernel has, by rising address."""
    rules = _self_callers(kernel)
    for run, code in sorted(undescribed_code(kernel.symbols), key=lambda found: found[0].start):
        if code is not Code.THUNK:
            continue
        try:
            text = kernel.read(run.start, len(run))
        except KvmgdbError:
            continue
        for start, end in _symbols(kernel, run):
            rules += _thunk(start, text[start - run.start : end - run.start])
    return sorted(rules, key=lambda rule: rule.code.start)


def _self_callers(kernel: Kernel) -> list[CallRule]:
    """Code that fills the processor's buffer of return addresses by calls that never
    return (FILL_RETURN_BUFFER): tables of 6.1 do not know what that pushes."""
    found = list(kernel.symbols.named("__switch_to_asm"))
    if len(found) != 1:
        return []
    size = symbol_size(kernel.symbols, found[0].index)
    if not 0 < size <= _MAX_SWITCH:
        return []
    return [CallRule(range(found[0].address, found[0].address + size), calls_itself=True)]


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


def _thunk(start: int, text: bytes) -> list[CallRule]:
    end = start + len(text)
    if text[:1] != bytes([_CALL]) or len(text) <= _CALL_LENGTH:
        return [CallRule(range(start, end), _WORD)]
    called = start + _CALL_LENGTH
    return [
        CallRule(range(start, called), _WORD),
        CallRule(range(called, end), 2 * _WORD, always=True),
    ]
