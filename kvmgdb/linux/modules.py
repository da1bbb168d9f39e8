"""Loaded kernel modules: where they lie, their symbols, types and unwind tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from kvmgdb.errors import GuestDataError, KvmgdbError, NotFoundError
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.native import BtfTable, SymbolTable
from kvmgdb.linux.objects import Object, Types

_MAX_SYMBOLS = 1 << 20
_MAX_STRINGS = 32 << 20
_MAX_NAME = 512
_MAX_BTF = 64 << 20
_ELF_SYMBOL = 24
# kernel/module/main.c: the reference that a live module holds on itself.
_MODULE_REF_BASE = 1
_STATES = {
    "MODULE_STATE_LIVE": "Live",
    "MODULE_STATE_COMING": "Loading",
    "MODULE_STATE_GOING": "Unloading",
}


@dataclass(frozen=True)
class Area:
    """A part of a module in memory (GVA, bytes)."""

    kind: str
    base: int
    size: int

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.base <= address < self.base + self.size


class Module:
    """One module, as the kernel lists it."""

    def __init__(self, kernel: Kernel, module: Object) -> None:
        self.kernel = kernel
        self.address = module.address
        self._module = module.snapshot()
        self.name = self._module.member("name").string()

    def __repr__(self) -> str:
        return f"<module {self.name} at {self.base:#x}>"

    @cached_property
    def areas(self) -> tuple[Area, ...]:
        """Its parts: text first. ``mem[]`` since 6.4, before that ``core_layout``."""
        if self._module.has("mem"):
            kinds = self.kernel.types.enumeration("mod_mem_type")
            memory = self._module.member("mem")
            areas = []
            for kind, index in sorted(kinds.items(), key=lambda item: item[1]):
                # MOD_INVALID is -1, and the last is how many there are.
                if not kind.startswith("MOD_") or not 0 <= index < memory.type.count:
                    continue
                entry = memory.element(index)
                size = entry.member("size").integer()
                if size:
                    name = kind.removeprefix("MOD_").lower()
                    areas.append(Area(name, entry.member("base").integer(), size))
            return tuple(areas)
        areas = []
        for prefix in ("core", "init"):
            layout = self._module.member(f"{prefix}_layout")
            base, size = layout.member("base").integer(), layout.member("size").integer()
            text = layout.member("text_size").integer()
            if size and text <= size:
                name = "" if prefix == "core" else "init_"
                areas.append(Area(f"{name}text", base, text))
                areas.append(Area(f"{name}data", base + text, size - text))
        return tuple(areas)

    @property
    def text(self) -> Area:
        """Its code. Raises GuestDataError for a module without any."""
        for area in self.areas:
            if area.kind == "text":
                return area
        raise GuestDataError(f"the module {self.name} has no code")

    @property
    def base(self) -> int:
        """What /proc/modules gives as its address."""
        return self.areas[0].base if self.areas else 0

    @property
    def size(self) -> int:
        """Bytes of all areas, as /proc/modules counts them."""
        return sum(area.size for area in self.areas)

    @property
    def per_cpu(self) -> int:
        """What its per-CPU section begins with as a symbol's value; 0 for none."""
        return self._module.member("percpu").integer() if self._module.has("percpu") else 0

    @property
    def state(self) -> str:
        """ "Live", "Loading" or "Unloading"."""
        number = self._module.member("state").integer()
        for name, value in self.kernel.types.enumeration("module_state").items():
            if value == number and name in _STATES:
                return _STATES[name]
        return "Loading"

    @property
    def is_formed(self) -> bool:
        """Whether its symbols and unwind tables are there; before, /proc/modules does
        not list it."""
        states = self.kernel.types.enumeration("module_state")
        return self._module.member("state").integer() != states.get("MODULE_STATE_UNFORMED")

    @property
    def references(self) -> int:
        """How many users it has, as /proc/modules counts them."""
        return self._module.member("refcnt").integer() - _MODULE_REF_BASE

    @property
    def users(self) -> list[str]:
        """The modules that use it."""
        head = self.kernel.object("module", self.address).member("source_list")
        uses = head.list("module_use", "source_list")
        return [use.member("source.name").string() for use in uses]

    @cached_property
    def symbols(self) -> SymbolTable:
        """Its symbols; upper-case types are exported ones, as in /proc/kallsyms."""
        table = self._module.member("kallsyms").target().snapshot()
        count = table.member("num_symtab").integer()
        if count > _MAX_SYMBOLS:
            raise GuestDataError(f"the module {self.name} claims to have {count} symbols")
        symtab = self.kernel.read(table.member("symtab").integer(), count * _ELF_SYMBOL)
        names = memoryview(symtab).cast("I")[:: _ELF_SYMBOL // 4].tolist()
        length = max(names, default=0) + _MAX_NAME
        if length > _MAX_STRINGS:
            raise GuestDataError(f"the names of the module {self.name} take {length} bytes")
        strings, _ = self.kernel.memory.read_virtual_partial(
            self.kernel.paging, table.member("strtab").integer(), length
        )
        strings = strings[: strings.rfind(b"\0") + 1]
        types = bytearray(count)
        if table.has("typetab"):
            types = bytearray(self.kernel.read(table.member("typetab").integer(), count))
        exported = self._exported()
        values = memoryview(symtab).cast("Q")[1 :: _ELF_SYMBOL // 8].tolist()
        for index, value in enumerate(values):
            letter = types[index : index + 1].decode("ascii", "replace")
            letter = letter.upper() if value in exported else letter.lower()
            types[index] = ord(letter) & 0x7F
        return SymbolTable.from_elf(symtab, strings, bytes(types))

    def _exported(self) -> set[int]:
        """Addresses of EXPORT_SYMBOL: struct kernel_symbol, place-relative."""
        count = self._module.member("num_syms").integer()
        if not 0 <= count <= _MAX_SYMBOLS:
            raise GuestDataError(f"the module {self.name} claims to export {count} symbols")
        if not count or not self.kernel.types.has_member("kernel_symbol", "value_offset"):
            return set()
        size = self.kernel.types.size("kernel_symbol")
        start = self._module.member("syms").integer()
        offset = self.kernel.types.offset("kernel_symbol", "value_offset")
        data = self.kernel.read(start, size * count)
        found = set()
        for at in range(offset, len(data), size):
            value = int.from_bytes(data[at : at + 4], "little", signed=True)
            found.add(start + at + value)
        return found

    @cached_property
    def types(self) -> Types:
        """The kernel's types and its own. Raises NotFoundError where the kernel keeps
        none (before 5.11), or the module was built without."""
        if self.kernel.find_symbol("btf_modules") is None:
            raise NotFoundError("the guest's kernel keeps no BTF of modules")
        for entry in self.kernel.variable("btf_modules", "list_head").list("btf_module", "list"):
            if entry.member("module").integer() != self.address:
                continue
            btf = entry.member("btf").target()
            size = btf.member("data_size").integer()
            if size > _MAX_BTF:
                raise GuestDataError(f"the BTF of {self.name} cannot take {size} bytes")
            data = self.kernel.read(btf.member("data").integer(), size)
            return Types(BtfTable(data, self.kernel.types.table))
        raise NotFoundError(f"the module {self.name} has no BTF")


@dataclass(frozen=True)
class ModuleList:
    """The modules; ``damage`` says why they may not be all."""

    modules: tuple[Module, ...]
    damage: str | None = None

    def __iter__(self) -> Iterator[Module]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    def at(self, address: int) -> Module | None:
        """The module that an address lies in."""
        for module in self.modules:
            if any(address in area for area in module.areas):
                return module
        return None


def list_modules(kernel: Kernel) -> ModuleList:
    """The loaded modules, the latest first. Where the list is damaged, or changes
    while it is read, what could be read of it."""
    found: list[Module] = []
    head = kernel.find_symbol("modules")
    if head is None:
        return ModuleList(())
    try:
        for entry in kernel.object("list_head", head).list("module", "list"):
            found.append(Module(kernel, entry))
    except KvmgdbError as error:
        return ModuleList(tuple(found), str(error))
    return ModuleList(tuple(found))
