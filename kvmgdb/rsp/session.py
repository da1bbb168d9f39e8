"""One debugger's connection: its settings, its packets, its replies.

A session knows nothing of sockets: bytes come in through :meth:`Session.feed`
and leave through the :class:`Connection` it was given.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable
from typing import Protocol

from kvmgdb.errors import KvmgdbError, MachineError, TargetGoneError
from kvmgdb.machine.interface import Machine, StopEvent, StopReason, Vcpu
from kvmgdb.machine.native import Memory, Paging, rsp_frame, rsp_unescape
from kvmgdb.rsp import stop_reply
from kvmgdb.rsp.debuggee import Debuggee
from kvmgdb.rsp.dispatch import PACKET_SIZE, Reply, find_handler
from kvmgdb.rsp.guest_view import GuestView
from kvmgdb.rsp.packet import BadPacket, Interrupt, Item, Nak, Packet, PacketReader
from kvmgdb.rsp.tasks import SleepingTask, TaskThreads
from kvmgdb.rsp.virtual_files import Descriptors

# Packets that a client may have on their way before it reads a reply. GDB waits
# for each; what goes on beyond this is not a debugger.
_MAX_QUEUED = 256
_numbers = itertools.count(1)
# The stops at which a debugger is told first what has changed in the guest's
# kernel. A step is none: what steps does not want to be sent on by itself.
_WITH_NEWS = frozenset(StopReason) - {StopReason.STEP, StopReason.EXITED}


class Connection(Protocol):
    """Where a session's bytes go."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class Session:
    """A debugger at the other end of ``connection``.

    ``peer`` says who it is, in words. Attributes that packet handlers use:
    ``machine`` (raises TargetGoneError), ``register_vcpu`` (what ``Hg``
    selected), ``features`` (what the client announced),
    ``asked_offsets`` (whether it has asked where the kernel lies),
    ``listed_event`` (the stop after which the threads were listed last),
    ``guest_view`` (what it was told of the guest's kernel), ``descriptors`` (the
    files it has open), ``tasks`` (the guest's tasks as threads), ``register_task``
    (the one of them that ``Hg`` selected).
    """

    def __init__(self, debuggee: Debuggee, connection: Connection, peer: str) -> None:
        self.debuggee = debuggee
        self.connection = connection
        self.number = next(_numbers)
        self.name = f"debugger {self.number} ({peer})"
        self.features: frozenset[str] = frozenset()
        self.asked_offsets = False
        self.register_index: int | None = None
        self.continue_index: int | None = None
        self.physical_memory = False
        self.last_event: StopEvent | None = None
        self.listed_event: StopEvent | None = None
        self.guest_view = GuestView(self)
        self.descriptors = Descriptors()
        self.tasks = TaskThreads(self)
        self.register_task: SleepingTask | None = None
        self._owed: StopEvent | None = None
        self._told_news = False
        self.closed = False
        self._refused = ""
        self._introduced = False
        self._reader = PacketReader(PACKET_SIZE)
        self._acks = True
        self._last_frame = b""
        self._queue: deque[Item] = deque()
        self._pending: asyncio.Future[Reply] | None = None
        self._task: asyncio.Task[None] | None = None

    # ---- what handlers ask

    @property
    def machine(self) -> Machine:
        """The machine. Raises TargetGoneError where this debugger is not, or no
        longer, attached to one."""
        if self._refused:
            raise TargetGoneError(self._refused)
        if not self.has_machine:
            raise TargetGoneError("this debugger is not attached to the virtual machine any more")
        return self.debuggee.machine

    @property
    def holds_guest(self) -> bool:
        """Whether this debugger is at its prompt, and the guest stands for it."""
        return self.debuggee.holds(self)

    @property
    def at_prompt(self) -> bool:
        """Whether it holds the guest, and nothing is under way for it."""
        return self._task is None and not self.closed and self.holds_guest

    def memory_view(self) -> tuple[Memory, Paging] | None:
        """Where a memory packet that comes next is read from; None where more than
        the bytes there decides on the reply."""
        if self._acks or self.physical_memory or not self._reader.is_empty:
            return None
        try:
            return self.register_vcpu.memory_view()
        except KvmgdbError:
            return None

    @property
    def has_machine(self) -> bool:
        """Whether this debugger is attached to a machine that is there."""
        return self.debuggee.has(self)

    @property
    def register_vcpu(self) -> Vcpu:
        """The vCPU, or sleeping task, that register and memory packets are about."""
        if self.register_task is not None:
            return self.register_task
        vcpus = self.machine.vcpus
        index = self.register_index
        if index is None:
            index = self.current_index
        return vcpus[index] if index < len(vcpus) else vcpus[0]

    @property
    def current_index(self) -> int:
        """The vCPU of the last stop that this debugger was told."""
        event = self.last_event or self.debuggee.last_stop
        return event.vcpu if event.vcpu < len(self.machine.vcpus) else 0

    def require_stopped(self) -> None:
        """Raises MachineError while this debugger has let the guest run."""
        if self.has_machine and not self.debuggee.holds(self):
            raise MachineError("the guest is running: interrupt it first")

    def attach(self) -> None:
        """Attaches to the machine, which stops. Raises KvmgdbError."""
        if not self.has_machine:
            self.debuggee.attach(self)
            self._refused = ""
            self.last_event = None

    def detach(self) -> None:
        """Lets the machine go and removes what this debugger has set in it."""
        self.tasks.hide()
        self.register_task = None
        self.debuggee.detach(self)

    def use_no_acks(self) -> None:
        """From the next packet on, none is acknowledged any more."""
        self._acks = False

    # ---- bytes

    def feed(self, data: bytes) -> None:
        """Takes what the client sent."""
        starting = not self._introduced
        previous: Item | None = None
        for item in self._reader.feed(data):
            if starting and isinstance(item, Packet) and item == previous:
                # GDB sends its first packet again while a server that it has
                # started does not read yet, and wants one reply.
                continue
            previous = item
            if isinstance(item, Interrupt):
                self._interrupt()
            elif self._task is not None or self._queue:
                if len(self._queue) >= _MAX_QUEUED:
                    self.debuggee.log(f"{self.name} sends without waiting for replies: dropped")
                    self.close()
                    return
                self._queue.append(item)
            else:
                self._handle(item)
            if self.closed:
                return

    def close(self) -> None:
        """The connection is gone, or to be dropped; what it held is given back."""
        if self.closed:
            return
        self.closed = True
        self._queue.clear()
        if self._pending is not None:
            self._pending.cancel()
        self.connection.close()
        if self.has_machine:
            self.debuggee.log(f"{self.name} is gone")
        self.detach()

    def _interrupt(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
        else:
            self.debuggee.interrupt(self)

    def _handle(self, item: Item) -> None:
        if isinstance(item, Nak):
            if self._last_frame:
                self.connection.write(self._last_frame)
        elif isinstance(item, BadPacket):
            self._refuse(item)
        elif not isinstance(item, Interrupt):
            self._execute(item.payload)

    def _refuse(self, item: BadPacket) -> None:
        self.debuggee.log(f"{self.name} sent {item.reason}: not executed")
        if self._acks and "checksum" in item.reason:
            self.connection.write(b"-")
        else:
            # Nobody asks again for it: the client waits for a reply.
            self._send(Reply(b"E4a"), ack=self._acks)

    def _execute(self, payload: bytes) -> None:
        acks = self._acks
        if acks and not self._introduced:
            # Attaching may take longer than a client waits for this.
            self.connection.write(b"+")
            acks = False
        if b"}" in payload:
            try:
                payload = rsp_unescape(payload, runs=False)
            except KvmgdbError as error:
                self._send(self.error(error), ack=acks)
                return
        try:
            self._attach_once(payload)
            handler, arguments = find_handler(payload)
            if handler is None:
                self._send(Reply(b""), ack=acks)
                return
            result = handler(self, arguments)
        except Exception as error:
            result = self._error_of(error)
        if result is None:
            if acks and not self.closed:
                self.connection.write(b"+")
            self.debuggee.settle()
        elif isinstance(result, Reply):
            self._send(result, ack=acks)
        else:
            if acks:
                self.connection.write(b"+")
            # Two tasks: one that is cancelled before it has begun runs none of its
            # code, and the client must get its reply all the same.
            self._pending = asyncio.ensure_future(result)
            self._task = asyncio.ensure_future(self._finish(self._pending))

    def _attach_once(self, payload: bytes) -> None:
        """The first packet makes a client a debugger: only then the guest stops.

        Where that fails the reason is the reply to ``qSupported``, because GDB
        shows an error there to its user; later it only says that nothing runs.
        """
        if self._introduced:
            return
        self._introduced = True
        try:
            self.attach()
            self.debuggee.log(f"{self.name} attached")
        except KvmgdbError as error:
            self._refused = str(error)
            remedy = f"; {error.remedy}" if error.remedy else ""
            self.debuggee.log(f"{self.name} cannot attach: {error}{remedy}")
            if payload.startswith(b"qSupported"):
                self.features = frozenset({"error-message"})
                raise

    async def _finish(self, pending: Awaitable[Reply]) -> None:
        """Waits for a handler that takes its time; packets queue up meanwhile."""
        try:
            reply = await pending
        except asyncio.CancelledError:
            reply = self.error(KvmgdbError("interrupted"))
        except Exception as error:
            reply = self._error_of(error)
        self._pending = self._task = None
        if not self.closed:
            self._send(reply, ack=False)
        while self._queue and self._task is None and not self.closed:
            self._handle(self._queue.popleft())

    def _send(self, reply: Reply, ack: bool) -> None:
        frame = reply.framed or rsp_frame(reply.payload, binary=False, runs=True)
        self._last_frame = frame if self._acks else b""
        self.connection.write(b"+" + frame if ack else frame)

    def _error_of(self, error: Exception) -> Reply:
        """The reply for whatever a handler raised. A mistake of ours must not
        take the session, and with it the user's breakpoints, away."""
        if isinstance(error, KvmgdbError):
            return self.error(error)
        self.debuggee.log(f"internal error: {error!r}")
        return self.error(KvmgdbError(f"internal error: {error!r}"))

    def error(self, error: KvmgdbError) -> Reply:
        """The reply for an error: its text where the client can show it."""
        if "error-message" in self.features:
            text = str(error) + (f" ({error.remedy})" if error.remedy else "")
            printable = "".join(c if " " <= c <= "~" and c not in "#$}*" else "?" for c in text)
            return Reply(b"E." + printable.encode("ascii"))
        return Reply(b"E%02x" % (error.errno & 0xFF))

    # ---- Debugger

    def stopped(self, event: StopEvent) -> None:
        self.last_event = event
        self._select_stopped()
        if event.reason is StopReason.EXITED:
            self._refused = event.detail or "the virtual machine is gone"
        try:
            reply = self._news(event.vcpu) if event.reason in _WITH_NEWS else None
            if reply is not None:
                self._owed = event
            else:
                reply = stop_reply.build(self, event)
        except KvmgdbError as error:
            reply = self.error(error)
        if event.detail and event.reason is not StopReason.EXITED:
            self.console(f"kvmgdb: {event.detail}\n")
        self._send(reply, ack=False)

    def _select_stopped(self) -> None:
        """A stop reply selects its thread: GDB sends no ``Hg`` for that one."""
        self.register_index = None
        self.register_task = None

    def overdue(self) -> Reply | None:
        """The stop reply that this debugger, which lets the guest go after it was
        told some news, is owed before: more of them, or the stop they came with."""
        if not self._told_news:
            return None
        self._told_news = False
        self._select_stopped()
        reply = self._news(self.current_index)
        if reply is None and self._owed is not None:
            owed, self._owed = self._owed, None
            reply = stop_reply.build(self, owed)
        return reply

    def _news(self, vcpu: int) -> Reply | None:
        news = self.guest_view.news()
        if not news:
            return None
        self._told_news = True
        return stop_reply.build_news(self, vcpu, news)

    @property
    def follows_modules(self) -> bool:
        return self.guest_view.follows_modules

    @property
    def waits_for_kernel(self) -> bool:
        return self.guest_view.waits_for_kernel

    def announce(self, vcpu: int) -> bool:
        reply = self._news(vcpu)
        if reply is None:
            return False
        self.last_event = StopEvent(StopReason.REQUEST, vcpu)
        self._select_stopped()
        self._send(reply, ack=False)
        return True

    def console(self, text: str) -> None:
        self.connection.write(rsp_frame(b"O" + text.encode().hex().encode(), False, False))
