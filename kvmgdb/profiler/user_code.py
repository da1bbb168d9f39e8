"""Functions of the guest's programs, by the address that one of its tasks ran."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from kvmgdb.errors import KvmgdbError
from kvmgdb.linux.elf_program import ElfProgram
from kvmgdb.linux.kernel import PAGE, Kernel
from kvmgdb.linux.mappings import Mapping, Mappings
from kvmgdb.linux.page_cache import CachedFile
from kvmgdb.linux.vdso import Vdso
from kvmgdb.profiler.demangle import demangle
from kvmgdb.profiler.recording import Frame, FrameKind

# Programs whose own functions are not what their user wrote.
_INTERPRETERS = re.compile(
    r"(lib)?(python|pypy|perl|ruby|php|lua|node|deno|bun|java|jvm|mono|dotnet|coreclr|guile|tclsh)"
    r"[-\d.]*(\.so[\d.]*)?"
)
_MAX_PROGRAMS = 4096
_VDSO = "[vdso]"
# Ranges with names that are kept; at so many, they are looked up anew.
_MAX_KNOWN = 1 << 16
_MOST_LOOKS = 5
_NOT_CODE = Frame("", "[not code]", FrameKind.UNKNOWN, 0)


@dataclass(frozen=True)
class NamedCode:
    """Code in the range ``code`` (GVA) is ``frame``. ``is_code``: nobody can have called
    anything from there unless it is."""

    code: range
    frame: Frame
    is_code: bool = True


class UserCode:
    """Names what tasks of one kernel execute in user mode.

    ``incomplete`` are the files whose symbol table was not in the guest's memory,
    so that functions which they do not export have no name.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._programs: dict[tuple[int, str], ElfProgram | None] = {}
        self._known: dict[tuple[int, int], list[NamedCode]] = {}
        self._known_count = 0
        self.incomplete: set[str] = set()
        self._mappings: Mappings | None = None
        with suppress(KvmgdbError):  # a kernel that does not describe its types
            self._mappings = Mappings(kernel)

    def name(self, process: int, mm: int, address: int) -> NamedCode:
        """What is at ``address`` in the memory map ``mm`` of a process; never fails."""
        known = self._known.setdefault((process, mm), [])
        at = bisect_right(known, address, key=_start)
        if at and address in known[at - 1].code:
            return known[at - 1]
        found = self._find(mm, address)
        # Two that overlap are of different moments: the newer one is not kept.
        if (not at or known[at - 1].code.stop <= found.code.start) and (
            at == len(known) or found.code.stop <= known[at].code.start
        ):
            known.insert(at, found)
            self._known_count += 1
            if self._known_count > _MAX_KNOWN:
                self._known.clear()
                self._known_count = 0
        return found

    def _find(self, mm: int, address: int) -> NamedCode:
        page = address & -PAGE
        around = range(page, page + PAGE)
        nothing = NamedCode(around, Frame("", "", FrameKind.UNKNOWN, page), is_code=False)
        if self._mappings is None:
            return replace(nothing, is_code=True)
        if not mm:
            return NamedCode(around, _NOT_CODE, is_code=False)
        before = None
        for _ in range(_MOST_LOOKS):
            try:
                found = self._look(self._mappings, mm, address)
            except KvmgdbError:
                continue
            # The guest runs: what changes just now may seem not to be there.
            if found.is_code or found == before:
                return found
            before = found
        return nothing

    def _look(self, mappings: Mappings, mm: int, address: int) -> NamedCode:
        mapping = mappings.find(mm, address)
        if isinstance(mapping, range):
            return NamedCode(mapping, _NOT_CODE, is_code=False)
        if not mapping.executable:
            whole = range(mapping.start, mapping.end)
            return NamedCode(whole, _NOT_CODE, is_code=False)
        if mapping.file is None:
            return self._anonymous(mm, mapping, address)
        program = self._program(mapping.file.address, mapping.file.path, mapping.file.open)
        return self._in_file(mapping, program, mapping.file.path, address)

    def _anonymous(self, mm: int, mapping: Mapping, address: int) -> NamedCode:
        code = range(mapping.start, mapping.end)
        vdso = Vdso.of(self._kernel, mm)
        if vdso is not None and mapping.start == vdso.mapped_at:
            program = self._program(vdso.address, _VDSO, lambda: vdso)
            return self._in_file(mapping, program, _VDSO, address)
        return NamedCode(code, Frame("", "[JIT]", FrameKind.JIT, mapping.start))

    def _in_file(
        self, mapping: Mapping, program: ElfProgram | None, path: str, address: int
    ) -> NamedCode:
        name = path.rpartition("/")[2]
        interpreter = _INTERPRETERS.fullmatch(name) is not None
        kind = FrameKind.INTERPRETER if interpreter else FrameKind.USER
        whole = range(mapping.start, mapping.end)
        if program is None:
            return NamedCode(whole, Frame("", path, kind, mapping.start))
        offset = mapping.offset + (address - mapping.start)
        place = program.address_of(offset)
        bias = address - place
        function = program.function_at(place)
        if function is not None:
            code = range(function.start + bias, function.end + bias)
            text = demangle(function.name)
        else:
            gap = program.gap_at(place)
            code, text = range(gap.start + bias, gap.stop + bias), ""
        start = max(code.start, mapping.start)
        code = range(min(start, address), max(min(code.stop, mapping.end), address + 1))
        return NamedCode(code, Frame(text, path, kind, code.start))

    def _program(
        self, file: int, path: str, contents: Callable[[], CachedFile | Vdso]
    ) -> ElfProgram | None:
        """The program in a file; None for what cannot be read as one. ``file`` is the
        address (GVA) of what the kernel has of it."""
        key = (file, path)
        if key not in self._programs:
            if len(self._programs) >= _MAX_PROGRAMS:
                return None
            program = None
            try:
                program = ElfProgram(contents().read)
            except KvmgdbError:
                self.incomplete.add(path)
            else:
                if not program.complete:
                    self.incomplete.add(path)
            self._programs[key] = program
        return self._programs[key]


def _start(named: NamedCode) -> int:
    return named.code.start
