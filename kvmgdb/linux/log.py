"""The kernel's log: printk's ring buffer, as `dmesg` shows it.

Since 5.10 there is a ring of descriptors beside one of text (kernel/printk/
printk_ringbuffer.h); before, the records lay one after another in one buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvmgdb.errors import GuestDataError, NotFoundError
from kvmgdb.linux.identity import read_vmcoreinfo
from kvmgdb.linux.kernel import Kernel

_MAX_RECORDS = 1 << 20
_MAX_TEXT = 256 << 20
_MAX_OLD_HEADER = 256
# Bits of a descriptor's state_var (DESC_FLAGS_SHIFT): the state above the ID.
_STATE_SHIFT = 62
_ID_MASK = (1 << _STATE_SHIFT) - 1
_COMMITTED = 1
_FINALIZED = 2
# A position that stands for "no text": odd, where real ones are aligned.
_NO_TEXT = 1
# What precedes the text of a block: the ID of its descriptor (unsigned long).
_BLOCK_ID = 8
LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")


@dataclass(frozen=True)
class Record:
    """One message: ``sequence`` number, ``time`` in ns since boot, syslog
    ``facility`` and ``level`` (0 emergency to 7 debug). ``caller`` is a thread's ID,
    or a CPU's with bit 31 set, where the kernel keeps it; else None."""

    sequence: int
    time: int
    facility: int
    level: int
    caller: int | None
    text: str

    @property
    def level_name(self) -> str:
        return LEVELS[self.level]


def read_log(kernel: Kernel) -> list[Record]:
    """All messages that the ring buffer holds, the oldest first. One that the
    kernel is writing, or overwrites while it is read, is left out."""
    if kernel.find_symbol("prb") is not None:
        return sorted(_Ring(kernel).records(), key=lambda record: record.sequence)
    return list(_old_records(kernel))


class _Ring:
    """A copy of struct printk_ringbuffer and of its two rings."""

    def __init__(self, kernel: Kernel) -> None:
        types = kernel.types
        ring = kernel.object("printk_ringbuffer", kernel.u64(kernel.symbol("prb"))).snapshot()
        descriptors = ring.member("desc_ring")
        text = ring.member("text_data_ring")
        bits = descriptors.member("count_bits").integer()
        text_bits = text.member("size_bits").integer()
        if 1 << bits > _MAX_RECORDS or 1 << text_bits > _MAX_TEXT:
            raise GuestDataError(f"a log of 2^{bits} records and 2^{text_bits} bytes")
        self.count = 1 << bits
        self.text_size = 1 << text_bits
        self.text_bits = text_bits
        self._descriptor_size = types.size("prb_desc")
        self._info_size = types.size("printk_info")
        self._state = types.offset("prb_desc", "state_var")
        self._begin = types.offset("prb_desc", "text_blk_lpos.begin")
        self._next = types.offset("prb_desc", "text_blk_lpos.next")
        self.kernel = kernel
        # The text first: what is overwritten meanwhile has another ID by then.
        self.text = kernel.read(text.member("data").integer(), self.text_size)
        address = descriptors.member("infos").integer()
        self.infos = kernel.read(address, self.count * self._info_size)
        address = descriptors.member("descs").integer()
        self.descriptors = kernel.read(address, self.count * self._descriptor_size)
        self._info = self._info_fields()

    def _info_fields(self) -> dict[str, tuple[int, int]]:
        """Bit offset and bits of the fields of struct printk_info."""
        types = self.kernel.types
        info = types.named("printk_info")
        fields = {}
        for name in ("seq", "ts_nsec", "text_len", "facility", "level", "caller_id"):
            member = types.find_member(info.id, name)
            if member is None:
                raise GuestDataError(f"struct printk_info has no member {name}")
            bits = member.bits or 8 * types.table.size(member.type)
            fields[name] = (member.bit_offset, bits)
        return fields

    def _word(self, index: int, offset: int) -> int:
        at = index * self._descriptor_size + offset
        return int.from_bytes(self.descriptors[at : at + 8], "little")

    def records(self) -> Iterator[Record]:
        total = 0
        for index in range(self.count):
            state = self._word(index, self._state)
            identifier = state & _ID_MASK
            if state >> _STATE_SHIFT not in (_COMMITTED, _FINALIZED):
                continue
            if identifier % self.count != index:
                continue
            start = index * self._info_size
            info = int.from_bytes(self.infos[start : start + self._info_size], "little")
            values = {
                name: info >> offset & (1 << bits) - 1
                for name, (offset, bits) in self._info.items()
            }
            text = self._block(
                self._word(index, self._begin),
                self._word(index, self._next),
                identifier,
                values["text_len"],
            )
            if text is None:
                continue
            total += len(text)
            if total > self.text_size:
                raise GuestDataError("the texts of the log overlap")
            yield Record(
                sequence=values["seq"],
                time=values["ts_nsec"],
                facility=values["facility"],
                level=values["level"],
                caller=values["caller_id"] or None,
                text=text.decode("utf-8", "backslashreplace"),
            )

    def _block(self, begin: int, end: int, identifier: int, length: int) -> bytes | None:
        """get_data(): a block that does not fit before the end starts at 0."""
        if begin & _NO_TEXT and end & _NO_TEXT:
            return b""
        start = begin % self.text_size
        size = (end - begin) % (1 << 64)
        if start + size > self.text_size:
            start, size = 0, end % self.text_size
        if not _BLOCK_ID <= size <= self.text_size - start:
            return None
        owner = int.from_bytes(self.text[start : start + _BLOCK_ID], "little")
        if owner & _ID_MASK != identifier:
            return None
        at = start + _BLOCK_ID
        return self.text[at : at + min(length, size - _BLOCK_ID)]


def _old_records(kernel: Kernel) -> Iterator[Record]:
    """struct printk_log of kernels before 5.10: a record of length 0 says that the
    next is at the start."""
    size = kernel.u32(kernel.symbol("log_buf_len"))
    if not 0 < size <= _MAX_TEXT:
        raise GuestDataError(f"a log of {size} bytes")
    buffer = kernel.read(kernel.u64(kernel.symbol("log_buf")), size)
    at = kernel.u32(kernel.symbol("log_first_idx"))
    sequence = kernel.u64(kernel.symbol("log_first_seq"))
    end = kernel.u64(kernel.symbol("log_next_seq"))
    header_size, fields = _old_layout(kernel)

    def header(place: int) -> dict[str, int]:
        bits = int.from_bytes(buffer[place : place + header_size], "little")
        return {name: bits >> shift & (1 << width) - 1 for name, (shift, width) in fields.items()}

    left = size
    while sequence < end and left > 0:
        if not 0 <= at <= size - header_size:
            return
        values = header(at)
        if values["len"] == 0:
            if at == 0:
                return
            at = 0
            values = header(at)
        start = at + header_size
        text = buffer[start : start + min(values["text_len"], values["len"])]
        yield Record(
            sequence=sequence,
            time=values["ts_nsec"],
            facility=values["facility"],
            level=values["level"],
            caller=None,
            text=text.decode("utf-8", "backslashreplace"),
        )
        at += values["len"]
        left -= max(values["len"], 1)
        sequence += 1


def _old_layout(kernel: Kernel) -> tuple[int, dict[str, tuple[int, int]]]:
    """Bytes of struct printk_log; bit offset and bits of its fields: by BTF, or where
    a kernel was built without, by VMCOREINFO, which leaves out the last two bytes."""
    try:
        types = kernel.types
        record = types.named("printk_log")
    except NotFoundError:
        notes = read_vmcoreinfo(kernel)
        try:
            size = int(notes["SIZE(printk_log)"])
            fields = {
                name: (8 * int(notes[f"OFFSET(printk_log.{name})"]), bits)
                for name, bits in (("ts_nsec", 64), ("len", 16), ("text_len", 16))
            }
            last = 8 * (int(notes["OFFSET(printk_log.dict_len)"]) + 2)
        except (KeyError, ValueError):
            raise NotFoundError(
                "the guest's kernel does not tell how its log is laid out"
            ) from None
        fields |= {"facility": (last, 8), "level": (last + 13, 3)}
    else:
        size, fields = record.size, {}
        for name in ("ts_nsec", "len", "text_len", "facility", "level"):
            member = types.find_member(record.id, name)
            if member is None:
                raise GuestDataError(f"struct printk_log has no member {name}")
            fields[name] = (member.bit_offset, member.bits or 8 * types.table.size(member.type))
    outside = [name for name, (at, bits) in fields.items() if not 0 <= at <= 8 * size - bits]
    if not 0 < size <= _MAX_OLD_HEADER or outside:
        raise GuestDataError(f"struct printk_log cannot be as described ({size} bytes)")
    return size, fields
