"""Socket addresses as users and QEMU write them."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvmgdb.errors import (
    AccessDeniedError,
    HostError,
    TargetGoneError,
    TargetTimeoutError,
    UsageError,
)

# struct sockaddr_un: sun_path holds 108 bytes, the terminator included.
_SUN_PATH_MAX = 107


@dataclass(frozen=True)
class SocketAddress:
    """A TCP address (``host`` and ``port``) or a Unix socket (``path``).

    A path that starts with ``@`` is in the abstract namespace.
    """

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str, default_host: str = "127.0.0.1") -> SocketAddress:
        """``HOST:PORT``, ``[V6]:PORT``, ``:PORT``, ``PORT``, ``tcp:...`` or ``unix:PATH``."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path or "\0" in path:
                raise UsageError(f"{text!r} names no socket path", "write unix:PATH")
            return cls(path=path)
        match = re.fullmatch(
            r"(?:tcp:)?(?:(?P<host>\[[0-9a-fA-F:.%\w]+\]|[^:\[\]]*):)?(?P<port>[0-9]{1,5})", text
        )
        if not match or int(match["port"]) > 65535:
            raise UsageError(f"{text!r} is not an address", "write HOST:PORT, :PORT or unix:PATH")
        host = (match["host"] or "").strip("[]")
        return cls(host=host or default_host, port=int(match["port"]))

    def connect(self, timeout: float) -> socket.socket:
        """A connected stream socket. Raises TargetGoneError where nobody
        listens, AccessDeniedError, TargetTimeoutError or HostError."""
        try:
            if not self.path:
                connection = socket.create_connection((self.host, self.port), timeout)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(timeout)
                with short_socket_path(self.path) as name:
                    connection.connect(name)
            except BaseException:
                connection.close()
                raise
            return connection
        except TimeoutError:
            raise TargetTimeoutError(f"no answer from {self} within {timeout:g} s") from None
        except BlockingIOError:
            # A Unix socket whose backlog is full.
            raise TargetTimeoutError(f"{self} takes no more connections") from None
        except (ConnectionRefusedError, FileNotFoundError, ConnectionResetError):
            raise TargetGoneError(f"nobody listens on {self}") from None
        except PermissionError:
            raise AccessDeniedError(f"the host denies access to {self}") from None
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise HostError(f"cannot connect to {self}: {reason}") from None


@contextlib.contextmanager
def short_socket_path(path: str) -> Iterator[str]:
    """A name for ``path`` that fits into a socket address: one that is too long
    goes through a descriptor of its directory."""
    if path.startswith("@"):
        yield "\0" + path[1:]
    elif len(os.fsencode(path)) <= _SUN_PATH_MAX:
        yield path
    else:
        directory = os.open(Path(path).parent, os.O_PATH | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{directory}/{Path(path).name}"
        finally:
            os.close(directory)
