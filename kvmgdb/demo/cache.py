"""Where fetched kernels and built initramfs images are kept between runs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvmgdb.errors import HostError


def cache_directory(name: str) -> Path:
    """The directory ``name`` below ``$XDG_CACHE_HOME/kvmgdb``, made if it is not there.

    A relative XDG_CACHE_HOME is ignored, as the XDG Base Directory
    Specification demands. Raises HostError.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            raise HostError(
                "this user has no home directory for the cache",
                remedy="set XDG_CACHE_HOME to a directory that can be written",
            ) from None
    directory = base / "kvmgdb" / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"cannot make the cache directory {directory}",
            error.errno or 0,
            remedy="set XDG_CACHE_HOME to a directory that can be written",
        ) from None
    return directory


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the cache directory for one process; others wait until it is done."""
    try:
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(
            f"cannot write to the cache directory {directory}",
            error.errno or 0,
            remedy="set XDG_CACHE_HOME to a directory that can be written",
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
