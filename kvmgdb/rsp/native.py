"""Packets of a debugger at its prompt, received and partly answered in C."""

from __future__ import annotations

from kvmgdb._native import ffi, lib
from kvmgdb.machine.awake import wakefulness
from kvmgdb.machine.native import ERRORS, Memory, Paging

# Bytes taken from a connection at once.
_RECEIVE_SIZE = 1 << 16


class Attendant:
    """Waits for the packets of one debugger (``kvmgdb_rsp_attend``)."""

    def __init__(self) -> None:
        # What the event loop receives into, too: allocated once.
        self.buffer = memoryview(bytearray(_RECEIVE_SIZE))
        self._buffer = ffi.from_buffer(self.buffer)
        self._reply = ffi.new("char[]", lib.KVMGDB_RSP_REPLY_MAX)
        self._received = ffi.new("size_t *")
        self._unsent = ffi.new("size_t *")
        self._preempted = ffi.new("int *")
        self._error = ffi.new("struct kvmgdb_error *")

    def attend(
        self, socket: int, view: tuple[Memory, Paging] | None, awake: float, turn: float
    ) -> tuple[int, bytes]:
        """Waits awake, ``awake`` seconds for a packet and ``turn`` in all, and
        answers memory reads from ``view``, which must not change meanwhile, as a
        session without acknowledgements would. Returns how many bytes lie in
        :attr:`buffer` that are for the session (0: none came, or no more will
        come), and what the socket did not take of the last answer."""
        memory, paging = (ffi.NULL, ffi.NULL) if view is None else (view[0].native, view[1].native)
        status = lib.kvmgdb_rsp_attend(
            memory,
            paging,
            socket,
            int(awake * 1e9),
            int(turn * 1e9),
            self._buffer,
            len(self.buffer),
            self._received,
            self._reply,
            self._unsent,
            self._preempted,
            self._error,
        )
        if status != lib.KVMGDB_OK:
            raise ERRORS[status](self._error)
        if self._preempted[0]:
            wakefulness.preempted()
        return self._received[0], bytes(ffi.buffer(self._reply, self._unsent[0]))
