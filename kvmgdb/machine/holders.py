"""Who holds what we need: processes by name, and the clients of a socket that
serves one at a time (QEMU's GDB stub, its QMP).

TCP connections are in ``/proc/net/tcp``. Which two Unix sockets belong together
only the kernel's socket diagnostics tell (``struct unix_diag_req``,
``struct unix_diag_msg`` in include/uapi/linux/unix_diag.h).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kvmgdb.errors import KvmgdbError, TargetTimeoutError
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.sockets import listening_sockets, socket_inodes, tcp_sockets

_MAX_COMMAND = 200

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_UDIAG_SHOW_PEER = 4
_UNIX_DIAG_PEER = 2
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_ANSWER = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")
_TIMEOUT = 2.0


def command_of(pid: int) -> str:
    """A process's PID and command line for people: of an agent of kvmgdb's those of
    the kvmgdb that started it. "" where the process has ended."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if name.startswith("kvmgdb-agent"):
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    command = " ".join(word.decode(errors="replace") for word in words if word) or name
    printable = "".join(letter if letter.isprintable() else "?" for letter in command)
    return f"PID {pid}: {printable[:_MAX_COMMAND]}"


def process_state(pid: int) -> str:
    """The letter of a process's state (proc(5)), "" where it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def stopped_process(
    pid: int, vmm: str = "the process with", states: str = "Tt"
) -> TargetTimeoutError | None:
    """The error of a process that does not answer because it is stopped; None where
    its state (proc(5)) is none of ``states``."""
    state = process_state(pid)
    if not state or state not in states:
        return None
    return TargetTimeoutError(
        f"{vmm} PID {pid} does not answer: the process is stopped, by a signal or a debugger "
        "of its own",
        f"`kill -CONT {pid}` lets it go on after a signal",
    )


def client_of(address: SocketAddress, server: int) -> str:
    """The process that is connected to ``address``, on which the process ``server``
    listens: ": PID 123: its command". "" where that cannot be seen."""
    inodes = _unix_clients(address, server) if address.path else _tcp_clients(address)
    for pid in _owners(inodes):
        if command := command_of(pid):
            return f": {command}"
    return ""


def _tcp_clients(address: SocketAddress) -> set[str]:
    connections = tcp_sockets(os.getpid(), connected=True)
    found = {each.inode for each in connections if each.remote_port == address.port}
    # A connection of our own may be waiting to be accepted.
    return found - socket_inodes(os.getpid())


def _unix_clients(address: SocketAddress, server: int) -> set[str]:
    try:
        accepted = listening_sockets(server, connected=True)
        peers = dict(_unix_peers())
    except (OSError, KvmgdbError):
        return set()
    return {
        str(peers[int(inode)])
        for inode, own in accepted.items()
        if own.path == address.path and int(inode) in peers
    }


def _unix_peers() -> Iterator[tuple[int, int]]:
    """The inodes of all connected pairs of Unix sockets, from either side."""
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _UDIAG_SHOW_PEER, 0, 0)
    length = _HEADER.size + len(request)
    header = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_TIMEOUT)
        netlink.send(header + request)
        while True:
            data = netlink.recv(1 << 16)
            while len(data) >= _HEADER.size:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind in (_NLMSG_ERROR, _NLMSG_DONE) or length < _HEADER.size:
                    return
                yield from _peer_in(data[_HEADER.size : length])
                data = data[(length + 3) & -4 :]


def _peer_in(message: bytes) -> Iterator[tuple[int, int]]:
    if len(message) < _ANSWER.size:
        return
    inode = _ANSWER.unpack_from(message)[4]
    attributes = message[_ANSWER.size :]
    while len(attributes) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if length < _ATTRIBUTE.size:
            return
        value = attributes[_ATTRIBUTE.size : length]
        if kind == _UNIX_DIAG_PEER and len(value) == 4:
            yield inode, struct.unpack("=I", value)[0]
        attributes = attributes[(length + 3) & -4 :]


def _owners(inodes: set[str]) -> Iterator[int]:
    """The processes, as far as this user may look, that have one of the sockets."""
    for entry in os.listdir("/proc") if inodes else ():
        if entry.isdigit():
            with suppress(OSError):
                if inodes & socket_inodes(int(entry)):
                    yield int(entry)
