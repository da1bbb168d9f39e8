"""Sockets of the host's processes, as ``/proc`` has them.

A process may live in another mount or network namespace (a container): its socket
paths are taken relative to its own root and working directory.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kvmgdb.errors import AccessDeniedError, TargetGoneError
from kvmgdb.machine.address import SocketAddress

_ACCEPTING = 0x10000  # __SO_ACCEPTCON in the Flags column of /proc/net/unix
_UNIX_CONNECTED = "03"  # SS_CONNECTED in its St column
_TCP_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
_TCP_ESTABLISHED = "01"


class TcpSocket(NamedTuple):
    """A row of /proc/net/tcp or tcp6."""

    inode: str
    host: str
    port: int
    remote_port: int


def socket_inodes(pid: int) -> set[str]:
    """The sockets that a process has open. Raises OSError where it is gone, or is
    not to be seen."""
    directory = f"/proc/{pid}/fd"
    inodes = set()
    for descriptor in os.listdir(directory):
        try:
            link = os.readlink(f"{directory}/{descriptor}")
        except FileNotFoundError:
            continue
        if match := re.fullmatch(r"socket:\[(\d+)\]", link):
            inodes.add(match[1])
    return inodes


def listening_sockets(pid: int, connected: bool = False) -> dict[str, SocketAddress]:
    """Sockets on which a process listens, by inode; or, with ``connected``, those of
    its connections, by the address on its side. Paths are as seen from here. Raises
    AccessDeniedError, or TargetGoneError when the process has exited."""
    try:
        inodes = socket_inodes(pid)
    except PermissionError:
        raise AccessDeniedError(f"the host denies a look at the files of PID {pid}") from None
    except FileNotFoundError:
        raise TargetGoneError(f"process {pid} has exited") from None
    found = dict(_unix_sockets(pid, connected))
    for tcp in tcp_sockets(pid, connected):
        found[tcp.inode] = SocketAddress(host=tcp.host, port=tcp.port)
    return {inode: address for inode, address in found.items() if inode in inodes}


def _unix_sockets(pid: int, connected: bool) -> Iterator[tuple[str, SocketAddress]]:
    for line in _read_lines(f"/proc/{pid}/net/unix"):
        # Num RefCount Protocol Flags Type St Inode Path
        fields = line.split(maxsplit=7)
        if len(fields) != 8 or not fields[3].isalnum():
            continue
        if fields[5] == _UNIX_CONNECTED if connected else int(fields[3], 16) & _ACCEPTING:
            yield fields[6], SocketAddress(path=seen_from_here(pid, fields[7]))


def tcp_sockets(pid: int, connected: bool) -> Iterator[TcpSocket]:
    """All in the network namespace of a process that listen, or are connected."""
    for table in ("tcp", "tcp6"):
        for line in _read_lines(f"/proc/{pid}/net/{table}"):
            fields = line.split()
            if len(fields) > 9 and fields[3] == (_TCP_ESTABLISHED if connected else _TCP_LISTEN):
                port, remote = (int(end.rpartition(":")[2], 16) for end in fields[1:3])
                host = "127.0.0.1" if table == "tcp" else "::1"
                yield TcpSocket(fields[9], host, port, remote)


def peer_process(descriptor: int) -> int:
    """The process that listens, or listened, behind a connected Unix socket; 0 where
    that is in another PID namespace."""
    size = struct.calcsize("3i")
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[0])


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()[1:]
    except OSError:
        return []


def seen_from_here(pid: int, path: str) -> str:
    """A socket path of another process, by a name that works for us."""
    if path.startswith("@"):
        return path
    if not path.startswith("/"):
        return f"/proc/{pid}/cwd/{path}"
    try:
        if os.stat(f"/proc/{pid}/root").st_ino == os.stat("/").st_ino and _same_mounts(pid):
            return path
    except OSError:
        return path
    return f"/proc/{pid}/root{path}"


def _same_mounts(pid: int) -> bool:
    return os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
