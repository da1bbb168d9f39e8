"""Files that a debugger finds on the target: made by us, read-only, never the host's.

What GDB calls the target's file system (GDB manual, "Host I/O Packets") is here
a table of paths; nothing that a client asks for reaches a path of the host.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kvmgdb.errors import KvmgdbError
from kvmgdb.symbols import SymbolFile

DIRECTORY = "/kvmgdb"
# How GDB calls the target's files. In a name that it is told it makes GDB look for
# them nowhere else, whatever its user has set as sysroot, and also where it offers to
# replace a file that does not fit.
ON_TARGET = "target:"
# Files that one client may have open at a time. GDB keeps one per object file
# open while it reads it, and a few of those at once.
MAX_OPEN = 64
_MAX_PATHS = 1 << 14
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.+-]")
_MAX_NAME = 64

_REGULAR_FILE_READ_ONLY = 0o100444
_BLOCK_SIZE = 4096
_STAT = struct.Struct(">7I3Q3I")

_FIRST_DESCRIPTOR = 3


class FileError(Exception):
    """A file request that is refused: ``errno`` as the File-I/O protocol counts
    (GDB manual, "Errno Values"), which is Linux's for all that are used here."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"errno {errno}")
        self.errno = errno


ENOENT, EINTR, EBADF, EINVAL, ENFILE, EMFILE, EROFS, EIO = 2, 4, 9, 22, 23, 24, 30, 9999


@dataclass(frozen=True)
class VirtualFile:
    """A file: ``serial`` is its inode number, which no other file ever has."""

    path: str
    serial: int
    data: bytes

    def stat(self) -> bytes:
        """``struct stat`` of the File-I/O protocol: 64 bytes, big-endian. The times
        are all 0: GDB takes a file for the same as long as its times, its size
        and its inode number are."""
        size = len(self.data)
        blocks = -(-size // _BLOCK_SIZE)
        return _STAT.pack(
            *(0, self.serial & 0xFFFFFFFF, _REGULAR_FILE_READ_ONLY, 1, 0, 0, 0),
            *(size, _BLOCK_SIZE, blocks),
            *(0, 0, 0),
        )


# Reads what a file is made of; what it returns makes it, and is called in another
# thread. Both raise KvmgdbError.
Reader = Callable[[], Callable[[], SymbolFile]]


class _Entry:
    def __init__(self, key: object, serial: int, read: Reader) -> None:
        self.key = key
        self.serial = serial
        self.read = read
        self.file: VirtualFile | None = None
        self.building: asyncio.Future[SymbolFile] | None = None
        self.notes: tuple[str, ...] = ()


class VirtualFiles:
    """The files of a server by path; each is built when it is first opened, and kept.
    The guest is read at once, and the file built beside the event loop, once for all
    that wait for it.

    A file is named for what it is about: the same ``key`` gets the same path
    again, another key of the same name a path of its own, because GDB takes a
    library for unchanged as long as its name is.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._serials = itertools.count(1)
        self._builder = ThreadPoolExecutor(1, "symbol files")

    def name(self, stem: str, suffix: str, key: object, read: Reader) -> str:
        """The path of a file about ``key``, called ``stem`` + ``suffix`` if that is
        free."""
        clean = _NOT_IN_NAMES.sub("_", stem)[:_MAX_NAME].lstrip(".") or "unnamed"
        for number in itertools.count(1):
            numbered = clean if number == 1 else f"{clean}.{number}"
            path = f"{DIRECTORY}/{numbered}{suffix}"
            entry = self._entries.get(path)
            if entry is None:
                if len(self._entries) >= _MAX_PATHS:
                    self._entries.clear()
                self._entries[path] = entry = _Entry(key, next(self._serials), read)
            if entry.key == key:
                # By the latest way to the guest's memory.
                entry.read = read
                return path
        raise AssertionError("unreachable")

    def find(self, path: str) -> VirtualFile | None:
        """The file, where it is built. Raises FileError where there is none."""
        entry = self._entries.get(path)
        if entry is None:
            raise FileError(ENOENT)
        return entry.file

    async def open(self, path: str) -> VirtualFile:
        """Raises FileError. A file that cannot be built is tried again next time; where
        the caller does not wait for the end, it is built all the same."""
        entry = self._entries.get(path)
        if entry is None:
            raise FileError(ENOENT)
        if entry.file is not None:
            return entry.file
        building = entry.building
        try:
            if building is None:
                loop = asyncio.get_running_loop()
                building = loop.run_in_executor(self._builder, entry.read())
                entry.building = building
            built = await asyncio.shield(building)
        except asyncio.CancelledError:
            raise FileError(EINTR) from None
        except Exception as error:
            entry.building = None
            if not isinstance(error, KvmgdbError):
                raise
            entry.notes = (str(error),)
            raise FileError(EIO) from error
        if entry.file is None:
            file = VirtualFile(path, entry.serial, built.data)
            if entry.building is not building:
                return file  # given up meanwhile
            entry.file, entry.building = file, None
            entry.notes = built.warnings
        return entry.file

    def notes(self, paths: Iterable[str]) -> list[str]:
        """What is missing in files, or why they could not be built, for people."""
        return [
            f"{path}: {note}"
            for path in paths
            if path in self._entries
            for note in self._entries[path].notes
        ]

    def keep(self, paths: set[str]) -> None:
        """Gives up the content of all others; their names stay taken."""
        for path, entry in self._entries.items():
            if path not in paths:
                entry.file = entry.building = None


class Descriptors:
    """The files that one client has open."""

    def __init__(self) -> None:
        self._open: dict[int, VirtualFile] = {}

    def add(self, file: VirtualFile) -> int:
        """Raises FileError where too many are open."""
        if len(self._open) >= MAX_OPEN:
            raise FileError(EMFILE)
        number = _FIRST_DESCRIPTOR
        while number in self._open:
            number += 1
        self._open[number] = file
        return number

    def get(self, number: int) -> VirtualFile:
        """Raises FileError."""
        try:
            return self._open[number]
        except KeyError:
            raise FileError(EBADF) from None

    def close(self, number: int) -> None:
        """Raises FileError."""
        self.get(number)
        del self._open[number]
