"""The server: listens, and gives each connection a :class:`Session`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import kvmgdb.rsp.commands  # noqa: F401  (registers the packet handlers)
from kvmgdb.errors import ListenError
from kvmgdb.machine.address import SocketAddress, short_socket_path
from kvmgdb.machine.awake import wakefulness
from kvmgdb.rsp.debuggee import Debuggee
from kvmgdb.rsp.native import Attendant
from kvmgdb.rsp.session import Session

# A client that stops reading must not make us hoard what it asked for.
_MAX_UNSENT = 16 << 20
# Seconds for which a next packet is waited for awake, and for which one debugger
# may so keep the event loop from all else.
_AWAKE = 0.0001
_TURN = 0.02


@dataclass(frozen=True)
class ListenAddress:
    """Where to listen: a socket, or standard input and output."""

    socket: SocketAddress | None

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """``HOST:PORT``, ``:PORT``, ``PORT``, ``unix:PATH`` or ``-``."""
        return cls(None if text == "-" else SocketAddress.parse(text))

    def __str__(self) -> str:
        return "standard input and output" if self.socket is None else str(self.socket)


class ClientProtocol(asyncio.BufferedProtocol):
    """Glue between one asyncio transport and its session.

    Buffered: a plain protocol gets its bytes in an object of 256 KiB, which is
    mapped and unmapped again for each packet.
    """

    def __init__(self, debuggee: Debuggee, on_close: Callable[[], None] | None = None) -> None:
        self._debuggee = debuggee
        self._on_close = on_close
        self._transport: asyncio.WriteTransport | None = None
        self._session: Session | None = None
        self._attendant = Attendant()
        self._descriptor = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        connection = transport.get_extra_info("socket")
        if connection is not None:
            self._descriptor = connection.fileno()
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A peer whose host went away would hold the guest for ever.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        self._session = Session(self._debuggee, self, _peer_name(transport))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._attendant.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._attendant.buffer[:nbytes]))
        if self._session is not None and self._descriptor >= 0:
            self._stay_awake(self._session)

    def _stay_awake(self, session: Session) -> None:
        """Takes the next packet at once if it comes at once: a debugger at its
        prompt sends a handful in a row, and on an idle host to fall asleep between
        them costs more than the answers do."""
        end = time.perf_counter() + _TURN
        while session.at_prompt and wakefulness.pays and (left := end - time.perf_counter()) > 0:
            view = session.memory_view() if self._all_sent else None
            nbytes, unsent = self._attendant.attend(self._descriptor, view, _AWAKE, left)
            if unsent:
                self.write(unsent)
            if nbytes == 0:
                # The event loop finds the end of the stream, too.
                return
            session.feed(bytes(self._attendant.buffer[:nbytes]))

    @property
    def _all_sent(self) -> bool:
        return self._transport is not None and not self._transport.get_write_buffer_size()

    def data_received(self, data: bytes) -> None:
        if self._session is not None:
            self._session.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._descriptor = -1
        if self._session is not None:
            self._session.close()
        if self._on_close is not None:
            self._on_close()

    # ---- Connection

    def write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        if transport.get_write_buffer_size() > _MAX_UNSENT:
            self._debuggee.log("a debugger does not read what it asks for: dropped")
            transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _peer_name(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple):
        return str(SocketAddress(host=str(peer[0]), port=int(peer[1])))
    return "unix socket" if transport.get_extra_info("sockname") else "stdio"


class Server:
    """Serves one debuggee at one address until :meth:`stop`."""

    def __init__(self, debuggee: Debuggee, listen: ListenAddress) -> None:
        self._debuggee = debuggee
        self._listen = listen
        self._done = asyncio.Event()
        self._server: asyncio.Server | None = None
        self.address = listen.socket
        debuggee.request_quit = self.stop

    def stop(self) -> None:
        """Ends :meth:`serve` soon."""
        self._done.set()

    async def wait_stopped(self) -> None:
        """Returns when the server was told to end."""
        await self._done.wait()

    async def start(self) -> None:
        """Begins to listen. Raises ListenError."""
        loop = asyncio.get_running_loop()
        address = self._listen.socket
        if address is None:
            await self._serve_stdio(loop)
        elif address.path:
            self._server = await self._listen_unix(loop, address)
        else:
            try:
                self._server = await loop.create_server(
                    self._protocol, address.host, address.port, reuse_address=True
                )
            except (OSError, OverflowError, UnicodeError) as error:
                raise _listen_error(address, error) from None
            if not self._server.sockets:  # asyncio passes over sockets that it cannot make
                raise ListenError(
                    f"cannot listen on {address}: the host gave no socket for it",
                    "`ulimit -n` may allow too few open files, or the host lacks its protocol",
                )
            port = self._server.sockets[0].getsockname()[1]
            self.address = SocketAddress(host=address.host, port=port)

    async def serve(self) -> None:
        """Serves until :meth:`stop`, then gives the machine back."""
        try:
            await self._done.wait()
            # What a handler said before it asked for the end still goes out.
            await asyncio.sleep(0)
        finally:
            if self._server is not None:
                self._server.close()
            self._debuggee.close()
            self._remove_socket()

    def _protocol(self) -> ClientProtocol:
        return ClientProtocol(self._debuggee)

    async def _listen_unix(
        self, loop: asyncio.AbstractEventLoop, address: SocketAddress
    ) -> asyncio.Server:
        _remove_stale_socket(address.path)
        try:
            with short_socket_path(address.path) as name:
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                # Whoever can connect rules the guest: only this user may.
                mask = os.umask(0o077)
                try:
                    listener.bind(name)
                finally:
                    os.umask(mask)
            return await loop.create_unix_server(self._protocol, sock=listener)
        except OSError as error:
            raise _listen_error(address, error) from None

    async def _serve_stdio(self, loop: asyncio.AbstractEventLoop) -> None:
        """GDB started us (``target remote | kvmgdb serve ... --listen -``)."""
        protocol = ClientProtocol(self._debuggee, self.stop)
        if stat.S_ISSOCK(os.fstat(sys.stdin.fileno()).st_mode):
            # GDB gives both as one end of a socket pair.
            both = socket.socket(fileno=os.dup(sys.stdin.fileno()))
            await loop.connect_accepted_socket(lambda: protocol, both)
            return
        writer, _ = await loop.connect_write_pipe(asyncio.Protocol, sys.stdout.buffer)
        protocol.connection_made(writer)
        await loop.connect_read_pipe(lambda: _StdinProtocol(protocol), sys.stdin.buffer)

    def _remove_socket(self) -> None:
        address = self._listen.socket
        if self._server is not None and address is not None and address.path:
            with contextlib.suppress(OSError):
                os.unlink(address.path)


class _StdinProtocol(asyncio.Protocol):
    """The reading half of standard input and output."""

    def __init__(self, client: ClientProtocol) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._client.connection_lost(error)


def _remove_stale_socket(path: str) -> None:
    """Removes a socket that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise ListenError(f"cannot listen on {path}: it exists and is no socket")
    except OSError:
        return
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with probe:
        probe.settimeout(1.0)
        try:
            with short_socket_path(path) as name:
                probe.connect(name)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                os.unlink(path)
        except OSError:
            pass


def _listen_error(address: SocketAddress, error: Exception) -> ListenError:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        holder = "" if address.path else _port_holder(address.port)
        return ListenError(
            f"cannot listen on {address}: it is in use{holder}",
            "choose another with --listen (port 0 takes any that is free)",
        )
    if number == errno.EACCES:
        return ListenError(f"cannot listen on {address}: permission denied")
    reason = getattr(error, "strerror", None) or str(error)
    return ListenError(f"cannot listen on {address}: {reason}")


def _port_holder(port: int) -> str:
    """ " by PID n (name)" for a listening TCP port, or "" where it cannot be told."""
    wanted = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    wanted.add(f"socket:[{fields[9]}]")
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry) in wanted:
                pid = entry.parts[2]
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                return f" by PID {pid} ({name})"
    return ""
