"""What the server tells of the kernel in packets that GDB itself may never send."""

from __future__ import annotations

import re

from kvmgdb.linux.identity import LINKED_AT
from tests.support.gdb import GdbSession
from tests.support.rsp import RawClient
from tests.support.served import WatchedGuest
from tests.support.server import KvmgdbServer


def test_vmcoreinfo(guest: WatchedGuest, hot: int, server: KvmgdbServer) -> None:
    stext = guest.symbol("_stext")
    with RawClient(server.address) as client:
        client.request(b"qSupported:multiprocess+")
        text = b""
        while True:
            piece = client.request(b"qXfer:vmcoreinfo:read::%x,200" % len(text))
            assert piece[:1] in (b"m", b"l")
            text += piece[1:]
            if piece.startswith(b"l"):
                break
        # As kgdb answers: all of it at once.
        assert client.request(b"qlinux.vmcoreinfo") == b"Q" + text
    notes = dict(line.split("=", 1) for line in text.decode().splitlines())
    assert text.endswith(b"\n")
    assert notes["PAGESIZE"] == "4096"
    assert int(notes["SYMBOL(_stext)"], 16) == stext
    assert int(notes["KERNELOFFSET"], 16) == (stext & -(1 << 21)) - LINKED_AT


def test_per_cpu_data_as_that_of_threads(connected: GdbSession) -> None:
    """qGetTLSAddr: a per-CPU variable of each vCPU."""
    gdb = connected
    offset = gdb.integer("(char *) &percpu[0]->runqueues - (char *) __per_cpu_offset[0]")
    for cpu in (0, 1):
        reply = gdb.cli(f"maintenance packet qGetTLSAddr:p1.{cpu + 1:x},{offset:x},0")
        match = re.search(r'received: "([0-9a-f]+)"', reply)
        assert match, reply
        assert int(match[1], 16) == gdb.integer(f"&percpu[{cpu}]->runqueues")
    assert 'received: "E' in gdb.cli("maintenance packet qGetTLSAddr:p1.63,0,0")
