"""Code of the kernel that its unwind tables leave out, and what it is instead.

Retpolines and return thunks (arch/x86/lib/retpoline.S), and the entry code
around the switch of stacks (arch/x86/entry/entry_64.S, entry_64_compat.S) are
marked there as having no stack that an unwinder could use.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvmgdb.linux.native import Code, SymbolTable

# Longer than any of them, so that a table without other symbols ends too.
_MAX_RUN = 1 << 16
_MAX_SYMBOLS = 256

# The first symbol of a run, and how the names begin of those that go on with it.
_RUNS = (
    (
        Code.THUNK,
        "__x86_indirect_thunk_array",
        (
            "__x86_indirect_",
            "__x86_return_thunk",
            "srso_",
            "retbleed_",
            "its_return_thunk",
            "call_depth_return_thunk",
            "entry_untrain_ret",
        ),
    ),
    (Code.THUNK, "__x86_return_thunk", ("__x86_return_thunk",)),
    (
        Code.SYSCALL,
        "entry_SYSCALL_64",
        ("entry_SYSCALL_64", "syscall_return_via_sysret", "entry_SYSRETQ_"),
    ),
    (
        Code.SYSCALL,
        "entry_SYSCALL_compat",
        ("entry_SYSCALL_compat", "sysret32_from_system_call", "entry_SYSRETL_compat_"),
    ),
    (
        Code.IRET,
        "swapgs_restore_regs_and_return_to_usermode",
        (
            "swapgs_restore_regs_and_return_to_usermode",
            "common_interrupt_return",
            "restore_regs_and_return_to_kernel",
            "early_xen_iret_patch",
            "native_iret",
            "native_irq_return_iret",
        ),
    ),
    (Code.IRET, "entry_INT80_compat", ("entry_INT80_compat",)),
)


def undescribed_code(symbols: SymbolTable) -> Iterator[tuple[range, Code]]:
    """Ranges (GVA) that do not overlap; of those that a kernel has."""
    covered: list[range] = []
    for code, first, prefixes in _RUNS:
        run = _run(symbols, first, prefixes)
        if run and not any(run.start < other.stop and other.start < run.stop for other in covered):
            covered.append(run)
            yield run, code


def _run(symbols: SymbolTable, first: str, prefixes: tuple[str, ...]) -> range:
    """From a symbol to the first address that has no name of the run."""
    found = next(symbols.named(first), None)
    if found is None:
        return range(0)
    end = found.address
    goes_on = True
    for index in range(found.index, min(found.index + _MAX_SYMBOLS, len(symbols))):
        symbol = symbols[index]
        if symbol.address != end:
            end = symbol.address
            if not goes_on or end - found.address > _MAX_RUN:
                break
            goes_on = False
        goes_on |= symbol.name.removeprefix("__pfx_").startswith(prefixes)
    return range(found.address, min(end, found.address + _MAX_RUN))
