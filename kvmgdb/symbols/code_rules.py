"""Where the caller's address is in code that unwind tables do not describe.

A thunk (arch/x86/lib/retpoline.S) jumps to where a register points; built as a
retpoline, it calls into itself, puts the register over the address that this has
pushed, and returns to it: the tables' rule for the last step leads to the function
that is about to be called. Entry code that is not on a task's stack (arch/x86/entry)
has user mode above it.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvmgdb.errors import KvmgdbError
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.native import Code
from kvmgdb.linux.self_calls import self_calling_code
from kvmgdb.linux.undescribed import undescribed_code
from kvmgdb.symbols.native import CodeRule, RuleKind

_ENTRIES = {Code.SYSCALL: RuleKind.SYSCALL, Code.IRET: RuleKind.IRET}
_CALL = 0xE8
_CALL_LENGTH = 5
_WORD = 8


def code_rules(kernel: Kernel) -> list[CodeRule]:
    """Rules for all thunks and entries that the kernel has, by rising address."""
    rules = [
        CodeRule(code, RuleKind.CALLS_ITSELF, offset) for code, offset in self_calling_code(kernel)
    ]
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
