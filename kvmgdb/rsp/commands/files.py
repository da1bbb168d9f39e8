"""Files of the target: ``vFile:...`` and ``qXfer:exec-file``.

::

    qXfer:exec-file:read:1:0,1000     -> ltarget:/kvmgdb/vmlinux-6.1.0-...
    vFile:setfs:1                     -> F0
    vFile:open:<path in hex>,0,0      -> F3            or F-1,<errno in hex>
    vFile:fstat:3                     -> F40;<struct stat, 64 bytes>
    vFile:pread:3,20000,0             -> F8000;<bytes>
    vFile:close:3                     -> F0

Only files of our own are there (:mod:`kvmgdb.rsp.virtual_files`), to be read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kvmgdb.machine.native import rsp_frame_binary
from kvmgdb.rsp.commands.general import transfer
from kvmgdb.rsp.dispatch import (
    UNSUPPORTED,
    MalformedPacketError,
    Reply,
    packet,
    parse_bytes,
    parse_hex,
)
from kvmgdb.rsp.session import Session
from kvmgdb.rsp.virtual_files import (
    EINVAL,
    ENOENT,
    EROFS,
    ON_TARGET,
    FileError,
    VirtualFile,
)

# GDB asks for as much as a packet holds, however little of it it needs. Pieces of
# this size let it read a whole file about as fast as larger ones do, and a few
# headers faster.
PIECE = 32 << 10
_READ_ONLY = 0
_MAX_PATH = 4096


@packet("qXfer:exec-file:read:")
def executable(session: Session, arguments: bytes) -> Reply:
    """``qXfer:exec-file:read:<process>:offset,length``. Where the guest's kernel is
    not known (yet) there is none, which is no error of the connection."""
    _, colon, window = arguments.partition(b":")
    if not colon:
        raise MalformedPacketError("qXfer:exec-file:read:", arguments)
    path = session.guest_view.tell_executable()
    if path is None:
        return Reply(b"E02")
    return transfer((ON_TARGET + path).encode("utf-8"), window, "qXfer:exec-file:read:")


@packet("vFile:")
def file_request(session: Session, arguments: bytes) -> Reply | Awaitable[Reply]:
    operation, colon, rest = arguments.partition(b":")
    handler = _OPERATIONS.get(operation)
    if handler is None or not colon:
        return UNSUPPORTED
    try:
        result = handler(session, rest.split(b","))
    except FileError as error:
        return _refusal(error)
    return result if isinstance(result, Reply) else _awaited(result)


def _refusal(error: FileError) -> Reply:
    return Reply(b"F-1,%x" % error.errno)


async def _awaited(result: Awaitable[Reply]) -> Reply:
    try:
        return await result
    except FileError as error:
        return _refusal(error)


def _with_file(
    session: Session, path: str, reply: Callable[[VirtualFile], Reply]
) -> Reply | Awaitable[Reply]:
    """The reply about a file: at once if it is there, else when it is built."""
    files = session.debuggee.guest.files
    file = files.find(path)
    if file is not None:
        return reply(file)

    async def built() -> Reply:
        return reply(await files.open(path))

    return built()


def _numbers(fields: list[bytes], count: int) -> list[int]:
    if len(fields) != count:
        raise FileError(EINVAL)
    return [parse_hex(field, "vFile:") for field in fields]


def _path(field: bytes) -> str:
    if len(field) > 2 * _MAX_PATH:
        raise FileError(ENOENT)
    path = parse_bytes(field, "vFile:").decode("utf-8", "replace")
    # To compare build IDs, GDB puts another prefix before the one that it was given.
    return path.removeprefix(ON_TARGET)


def _setfs(session: Session, fields: list[bytes]) -> Reply:
    """All processes see the same files."""
    _numbers(fields, 1)
    return Reply(b"F0")


def _open(session: Session, fields: list[bytes]) -> Reply | Awaitable[Reply]:
    if len(fields) != 3:
        raise FileError(EINVAL)
    flags, _ = _numbers(fields[1:], 2)
    path = _path(fields[0])
    if flags != _READ_ONLY:
        raise FileError(EROFS)
    return _with_file(session, path, lambda file: Reply(b"F%x" % session.descriptors.add(file)))


def _close(session: Session, fields: list[bytes]) -> Reply:
    session.descriptors.close(*_numbers(fields, 1))
    return Reply(b"F0")


def _pread(session: Session, fields: list[bytes]) -> Reply:
    number, count, offset = _numbers(fields, 3)
    file = session.descriptors.get(number)
    piece = file.data[offset : offset + min(count, PIECE)]
    return Reply(framed=rsp_frame_binary(b"F%x;" % len(piece), piece, runs=False))


def _fstat(session: Session, fields: list[bytes]) -> Reply:
    return _stat_reply(session.descriptors.get(*_numbers(fields, 1)).stat())


def _stat(session: Session, fields: list[bytes]) -> Reply | Awaitable[Reply]:
    if len(fields) != 1:
        raise FileError(EINVAL)
    return _with_file(session, _path(fields[0]), lambda file: _stat_reply(file.stat()))


def _stat_reply(data: bytes) -> Reply:
    return Reply(framed=rsp_frame_binary(b"F%x;" % len(data), data, runs=False))


def _no_link(session: Session, fields: list[bytes]) -> Reply:
    raise FileError(EINVAL)


def _read_only(session: Session, fields: list[bytes]) -> Reply:
    raise FileError(EROFS)


_OPERATIONS: dict[bytes, Callable[[Session, list[bytes]], Reply | Awaitable[Reply]]] = {
    b"setfs": _setfs,
    b"open": _open,
    b"close": _close,
    b"pread": _pread,
    b"fstat": _fstat,
    b"stat": _stat,
    b"lstat": _stat,
    b"readlink": _no_link,
    b"pwrite": _read_only,
    b"unlink": _read_only,
}
