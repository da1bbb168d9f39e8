"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kvmgdb.errors import KvmgdbError


class OutputError(KvmgdbError):
    """A file could not be written; ``path`` is what the user named."""

    def __init__(self, path: Path, error: OSError) -> None:
        self.path = path
        super().__init__(f"cannot write {path}: {error.strerror or error}")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, that takes its name when all of it is on disk: until then,
    and when anything fails, what had the name before keeps it. A name that is not
    a file's (a pipe, a terminal) is written to as it is. Raises OutputError."""
    try:
        if _is_special(path):
            with path.open("wb") as file:
                yield file
            return
        # A link stays a link: what it points to is replaced.
        target = path.resolve()
        temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise OutputError(path, error) from error


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def check_writable(path: Path) -> None:
    """Raises OutputError where ``whole_file`` could not begin: worth knowing before
    a long recording rather than after."""
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        if _is_special(path):
            return
        folder = path.resolve().parent
        if not folder.is_dir():
            raise FileNotFoundError(0, f"there is no directory {folder}")
        if not os.access(folder, os.W_OK):
            raise PermissionError(0, f"files cannot be made in {folder}")
    except OSError as error:
        raise OutputError(path, error) from error
