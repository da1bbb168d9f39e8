"""The kernel's unwind tables in guest memory: Documentation/arch/x86/orc-unwinder.rst."""

from __future__ import annotations

from kvmgdb.errors import GuestDataError, NotFoundError
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.modules import Module
from kvmgdb.linux.native import OrcLayout, UnwindTables

_CODE = ("text", "init_text")
_MAX_ORC_BYTES = 64 << 20
_FIELDS = ("sp_offset", "bp_offset", "sp_reg", "bp_reg", "type", "end", "signal")
_BITS_OF_FIVE_TYPES = 3
# Kernels without BTF: struct orc_entry of 4.14 to 6.2.
_OLD_LAYOUT = OrcLayout(
    6,
    {
        "sp_offset": (0, 16),
        "bp_offset": (16, 16),
        "sp_reg": (32, 4),
        "bp_reg": (36, 4),
        "type": (40, 2),
        "end": (42, 1),
    },
    undefined_first=False,
)
# Entries that tell how registers are numbered.
_SAMPLE = 4096


def add_kernel(tables: UnwindTables, kernel: Kernel, most: int | None = None) -> None:
    """Adds the table of the kernel's own code, or its first ``most`` entries. Raises
    NotFoundError where the kernel has none."""
    ip_start, ip_end, start, end = (
        kernel.find_symbol(name)
        for name in (
            "__start_orc_unwind_ip",
            "__stop_orc_unwind_ip",
            "__start_orc_unwind",
            "__stop_orc_unwind",
        )
    )
    if ip_start is None or ip_end is None or start is None or end is None:
        raise NotFoundError("the kernel has no ORC tables")
    layout = orc_layout(kernel)
    count = min((ip_end - ip_start) // 4, (end - start) // layout.entry_size)
    if most is not None:
        count = min(count, most)
    _add(tables, kernel, kernel.text, ip_start, start, count, layout)


def add_module(tables: UnwindTables, kernel: Kernel, module: Module) -> None:
    """Adds the table of a module. Raises NotFoundError where it was built without."""
    arch = kernel.object("module", module.address).member("arch")
    count = arch.member("num_orcs").integer()
    if not count:
        return
    ips = arch.member("orc_unwind_ip").integer()
    entries = arch.member("orc_unwind").integer()
    # One table for both; the second kind of code is there while the module starts.
    for area in module.areas:
        if area.kind in _CODE:
            code = range(area.base, area.base + area.size)
            _add(tables, kernel, code, ips, entries, count, orc_layout(kernel))


def module_tables(kernel: Kernel, module: Module) -> UnwindTables:
    """The table of a module alone. Its registers are numbered as in the kernel's,
    of which a part is enough to tell."""
    sample = UnwindTables()
    add_kernel(sample, kernel, _SAMPLE)
    tables = UnwindTables()
    tables.numbering = sample.numbering
    add_module(tables, kernel, module)
    return tables


def orc_layout(kernel: Kernel) -> OrcLayout:
    """struct orc_entry as this kernel has it. Until 6.3 there are three types, in two
    bits, and from 5.8 on a bit that says that the stack ends; since 6.4 that is a
    type, and 0 is "undefined": five, in three bits."""
    try:
        types = kernel.types
        entry = types.named("struct orc_entry")
    except NotFoundError:
        return _OLD_LAYOUT
    fields = {}
    for name in _FIELDS:
        member = types.find_member(entry.id, name)
        if member is not None:
            bits = member.bits or 8 * types.table.size(member.type)
            fields[name] = (member.bit_offset, bits)
    has_five = fields.get("type", (0, 0))[1] >= _BITS_OF_FIVE_TYPES
    return OrcLayout(entry.size, fields, undefined_first=has_five)


def _add(
    tables: UnwindTables,
    kernel: Kernel,
    code: range,
    ips: int,
    entries: int,
    count: int,
    layout: OrcLayout,
) -> None:
    if not 0 <= count <= _MAX_ORC_BYTES // max(4, layout.entry_size):
        raise GuestDataError(f"an unwind table cannot have {count} entries")
    tables.add(
        code,
        ips,
        kernel.read(ips, 4 * count),
        kernel.read(entries, layout.entry_size * count),
        layout,
    )
