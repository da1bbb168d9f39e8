"""Thread ids: vCPU *n* is thread *n* + 1 of process 1.

With ``multiprocess+`` they read ``p1.2``, otherwise ``2``. -1 means all, 0 any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmgdb.errors import KvmgdbError
from kvmgdb.rsp.dispatch import MalformedPacketError, parse_hex

if TYPE_CHECKING:
    from kvmgdb.rsp.session import Session

PROCESS = 1
ALL = -1
ANY = 0


class NoSuchThreadError(KvmgdbError):
    """A thread id that names no vCPU of the machine."""

    def __init__(self, text: bytes) -> None:
        super().__init__(f"there is no thread {text[:20].decode('ascii', 'replace')}")

    @property
    def errno(self) -> int:
        return 3


def format_thread(session: Session, index: int) -> str:
    """The id of a vCPU as this client writes them."""
    return format_number(session, index + 1)


def format_number(session: Session, number: int) -> str:
    """As :func:`format_thread`, by the thread's number."""
    if "multiprocess" in session.features:
        return f"p{PROCESS:x}.{number:x}"
    return f"{number:x}"


def parse_thread(text: bytes, vcpus: int, packet: str) -> int:
    """ALL, ANY, or a thread number (vCPU index + 1). Raises NoSuchThreadError."""
    thread = text
    if text.startswith(b"p"):
        process, dot, thread = text[1:].partition(b".")
        if process not in (b"-1", b"0") and _number(process, packet) != PROCESS:
            raise NoSuchThreadError(text)
        if not dot or process == b"-1":
            return ALL
    if thread == b"-1":
        return ALL
    number = _number(thread, packet)
    if number > vcpus:
        raise NoSuchThreadError(text)
    return number


def parse_vcpu(text: bytes, vcpus: int, packet: str) -> int:
    """The index of one vCPU. Raises NoSuchThreadError for "all" and "any", too."""
    number = parse_thread(text, vcpus, packet)
    if number <= 0:
        raise NoSuchThreadError(text)
    return number - 1


def _number(text: bytes, packet: str) -> int:
    if len(text) > 8:
        raise MalformedPacketError(packet, text)
    return parse_hex(text, packet)
