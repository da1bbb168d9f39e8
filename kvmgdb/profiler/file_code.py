"""Functions of an ELF file that the user names: for guests that are not Linux."""

from __future__ import annotations

from pathlib import Path

from kvmgdb.errors import KvmgdbError, NotFoundError
from kvmgdb.linux.elf_program import ElfProgram
from kvmgdb.linux.kernel import PAGE
from kvmgdb.profiler.demangle import demangle
from kvmgdb.profiler.recording import Frame, FrameKind
from kvmgdb.profiler.user_code import NamedCode

_MAX_FILE = 1 << 30


class SymbolFileError(KvmgdbError):
    """A file that the user gave for its symbols cannot be used; ``path`` names it."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}", "give an ELF file with a symbol table")


class FileCode:
    """Names addresses as a file does that runs where it was linked."""

    def __init__(self, path: Path) -> None:
        """Raises SymbolFileError."""
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_FILE)
        except OSError as error:
            raise SymbolFileError(path, error.strerror or str(error)) from error

        def read(offset: int, length: int) -> bytes:
            if offset + length > len(data):
                raise NotFoundError("the file ends too early")
            return data[offset : offset + length]

        try:
            self._program = ElfProgram(read)
        except KvmgdbError as error:
            raise SymbolFileError(path, str(error)) from error
        if not len(self._program):
            raise SymbolFileError(path, "it has no symbols of functions")
        self._name = path.name

    def name(self, address: int) -> NamedCode | None:
        """What is at an address; None where the file has nothing."""
        function = self._program.function_at(address)
        if function is None:
            return None
        frame = Frame(demangle(function.name), self._name, FrameKind.USER, function.start)
        return NamedCode(range(function.start, function.end), frame)


def unnamed(address: int) -> NamedCode:
    """An address of which nothing is known."""
    page = address & -PAGE
    return NamedCode(
        range(address, address + 1), Frame(f"{address:#x}", "", FrameKind.UNKNOWN, page)
    )
