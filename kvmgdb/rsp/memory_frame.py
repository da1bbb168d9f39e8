"""Frames of guest memory, in which pages of zeros are run lengths.

Most of a guest's RAM is zeros, and GDB takes a frame apart byte by byte: 4 KiB
of zeros are 126 bytes as run lengths (GDB manual, appendix E, "Overview").
"""

from __future__ import annotations

from functools import cache

from kvmgdb.machine.native import rsp_checksum, rsp_frame_binary, rsp_frame_hex

_PAGE = 0x1000
_ZEROS = bytes(_PAGE)
# "X*~" stands for X and 97 more of it: the most that one run length can say.
_LONGEST = 98
_BIAS = 29


def frame_memory(prefix: bytes, address: int, data: bytes, binary: bool) -> bytes:
    """``data`` from ``address`` behind ``prefix``: escaped, or as hex digits."""
    encode = rsp_frame_binary if binary else rsp_frame_hex
    zeros = _zero_page(binary)
    parts = [prefix]
    kept = position = 0
    end = min(-address % _PAGE, len(data))
    while position < len(data):
        if data[position:end] == _ZEROS:
            if kept < position:
                parts.append(encode(b"", data[kept:position])[1:-3])
            parts.append(zeros)
            kept = end
        position, end = end, min(end + _PAGE, len(data))
    if len(parts) == 1:
        return encode(prefix, data)
    if kept < len(data):
        parts.append(encode(b"", data[kept:])[1:-3])
    payload = b"".join(parts)
    return b"$%b#%02x" % (payload, rsp_checksum(payload))


@cache
def _zero_page(binary: bool) -> bytes:
    zero, count = (b"\0", _PAGE) if binary else (b"0", 2 * _PAGE)
    whole, rest = divmod(count, _LONGEST)
    return (zero + b"*~") * whole + zero + b"*" + bytes((rest - 1 + _BIAS,))
