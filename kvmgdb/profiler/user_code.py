"""Functions of the guest's programs, by the address that one of its tasks ran."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from kvmgdb.errors import KvmgdbError
from kvmgdb.linux.elf_program import ElfProgram
from kvmgdb.linux.kernel import PAGE, Kernel
from kvmgdb.linux.mappings import Mapping, find_mapping
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


@dataclass(frozen=True)
class NamedCode:
    """Code in the range ``code`` (GVA) is ``frame``."""

    code: range
    frame: Frame


class UserCode:
    """Names what tasks of one kernel execute in user mode.

    ``incomplete`` are the files whose symbol table was not in the guest's memory,
    so that functions which they do not export have no name.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._programs: dict[tuple[int, str], ElfProgram | None] = {}
        self.incomplete: set[str] = set()

    def name(self, mm: int, address: int) -> NamedCode:
        """What is at ``address`` in the memory map ``mm``; never fails."""
        page = address & -PAGE
        around = range(page, page + PAGE)
        try:
            mapping = find_mapping(self._kernel, mm, address) if mm else None
        except KvmgdbError:
            mapping = None
        if mapping is None:
            return NamedCode(around, Frame("", "", FrameKind.UNKNOWN, page))
        try:
            if mapping.file is None:
                return self._anonymous(mm, mapping, address)
            program = self._program(mapping.file.address, mapping.file.path, mapping.file.open)
            return self._in_file(mapping, program, mapping.file.path, address)
        except KvmgdbError:
            return NamedCode(around, Frame("", "", FrameKind.UNKNOWN, page))

    def _anonymous(self, mm: int, mapping: Mapping, address: int) -> NamedCode:
        code = range(mapping.start, mapping.end)
        vdso = Vdso.of(self._kernel, mm)
        if vdso is not None and mapping.start == vdso.mapped_at:
            program = self._program(vdso.address, _VDSO, lambda: vdso)
            return self._in_file(mapping, program, _VDSO, address)
        if mapping.executable:
            return NamedCode(code, Frame("", "[JIT]", FrameKind.JIT, mapping.start))
        return NamedCode(code, Frame("", "", FrameKind.UNKNOWN, mapping.start))

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
