"""Packets as no debugger should send them, and those that GDB sends rarely."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.rsp import RawClient, expand, frame
from tests.support.served import WatchedGuest
from tests.support.server import KvmgdbServer

_PACKET_SIZE = 0x80000


@pytest.fixture
def client(server: KvmgdbServer) -> Iterator[RawClient]:
    """A client that the server has as a debugger; its session must survive the test."""
    with RawClient(server.address) as client:
        assert f"PacketSize={_PACKET_SIZE:x}".encode() in client.request(b"qSupported")
        yield client
        assert client.request(b"?").startswith(b"T05")


def test_wrong_checksum(client: RawClient, guest: WatchedGuest, server: KvmgdbServer) -> None:
    before = guest.register("RAX")
    for bad in (b"$P0=1122334455667788#00", b"$P0=1122334455667788#zz", b"$D#45"):
        client.send(bad)
        assert client.read(1) == b"-"
    server.wait_printed("a packet with a wrong checksum: not executed")
    assert guest.register("RAX") == before
    assert guest.status != "running"


def test_wrong_checksum_without_acknowledgements(client: RawClient) -> None:
    assert client.request(b"QStartNoAckMode") == b"OK"
    client.send(b"$D#00")
    assert client.receive().startswith(b"E")
    client.socket.sendall(frame(b"vMustReplyEmpty"))
    assert client.receive() == b""


def test_reply_is_sent_again(client: RawClient) -> None:
    first = client.request(b"g")
    client.send(b"-")
    assert client.receive() == first


def test_reads_in_a_row_see_the_guest_as_each_step_left_it(client: RawClient) -> None:
    """What is read at once, packet by packet, is what is read a packet later."""
    assert client.request(b"QStartNoAckMode") == b"OK"

    def ask(data: bytes) -> bytes:
        client.socket.sendall(data)
        reply = client.read(4)
        while reply[-3:-2] != b"#":
            reply += client.read(1)
        return expand(reply[1:-3])

    for _ in range(30):
        assert ask(frame(b"vCont;s:1")).startswith(b"T05")
        rsp = int.from_bytes(bytes.fromhex(ask(frame(b"p7")).decode()), "little")
        read = frame(b"m%x,40" % (rsp & ~0x3F))
        # After an acknowledgement that nobody waits for it comes with something else.
        assert {ask(read) for _ in range(5)} == {ask(b"+" + read)}


@pytest.mark.parametrize("size", [_PACKET_SIZE + 1, 8 << 20])
def test_oversized_packet(client: RawClient, server: KvmgdbServer, size: int) -> None:
    client.send(frame(b"X0,1:" + b"m" * size))
    assert client.receive().startswith(b"E")
    server.wait_printed(f"a packet of more than {_PACKET_SIZE} bytes: not executed")


def test_garbage_between_packets(client: RawClient) -> None:
    expected = client.request(b"qC")
    for garbage in (b"\0\xff\x80\r\n", b"GET / HTTP/1.1\r\n\r\n", b"#00", b"+++++", b"}" * 999):
        client.send(garbage + frame(b"qC"))
        assert client.receive() == expected


def test_a_packet_that_was_cut_off(client: RawClient) -> None:
    expected = client.request(b"qC")
    client.send(b"$m0,10" + frame(b"qC"))
    assert client.receive() == expected


def test_packets_in_pieces_and_in_heaps(client: RawClient) -> None:
    expected = client.request(b"qC")
    for byte in frame(b"qC"):
        client.send(bytes([byte]))
    assert client.receive() == expected
    client.send(frame(b"qC") * 50)
    assert [client.receive() for _ in range(50)] == [expected] * 50


def test_interrupt_while_the_guest_stands(client: RawClient, guest: WatchedGuest) -> None:
    client.send(b"\x03\x03\x03")
    assert client.request(b"qC") == b"QC1"
    assert guest.status != "running"


_MALFORMED = [
    *(
        b"m",
        b"m,",
        b"m1",
        b"m1,",
        b"m,1",
        b"mx,y",
        b"m-1,4",
        b"m1,2,3",
        b"m" + b"f" * 17 + b",1",
    ),
    *(b"M0,1", b"M0,2:00", b"M0,1:0", b"M0,1:zz", b"X0", b"X0,5:ab", b"x", b"x1,"),
    *(b"g1", b"G0", b"Gzz", b"p", b"pffff", b"pzz", b"P", b"P0", b"P0=", b"P0=00", b"Pffff=00"),
    *(b"Z", b"Z0", b"Z0,", b"Z0,zz,1", b"Z9,0,1", b"Z2,0,fffffffff", b"z0,1234,1", b"z"),
    *(b"H", b"Hx1", b"Hg99", b"Hgzz", b"T", b"T99", b"T-1", b"Tp9.1"),
    *(
        b"vCont",
        b"vCont;",
        b"vCont;x",
        b"vCont;c:99",
        b"vCont;s:p7.1",
        b"vCont;r:1",
        b"vCont;r1",
    ),
    *(b"vCont;Cxyz", b"vAttach;", b"vAttach;7", b"vKill;", b"vKill;1", b"vNothing", b"v"),
    *(b"qRcmd,z", b"qRcmd,0", b"qCRC:", b"qCRC:0", b"qCRC:0,-1", b"qSearch:memory:"),
    *(b"qSearch:memory:0;10;", b"qSearch:memory:0", b"qXfer:features:read:target.xml"),
    *(b"qXfer:features:read:x:0,10", b"qXfer:features:read:target.xml:z,10"),
    *(b"qXfer:threads:read:x:0,1", b"qThreadExtraInfo", b"qThreadExtraInfo,99"),
    *(b"Qqemu.sstep!", b"Qqemu.sstep=", b"Qqemu.sstep=99", b"Qqemu.PhyMemMode:7"),
    *(b"D;7", b"Dzz", b"", b"\xff\xfe", b"i", b"R00", b"k1", b"}", b"A1,2,3"),
]


def test_malformed_packets(client: RawClient) -> None:
    for payload in _MALFORMED:
        reply = client.request(payload)
        assert reply == b"" or reply.startswith(b"E"), (payload, reply)
        assert client.request(b"qC") == b"QC1", payload


def test_more_packets_than_anybody_sends(server: KvmgdbServer, guest: WatchedGuest) -> None:
    """A search takes its time; what is sent meanwhile waits, up to a limit."""
    text = guest.symbol("_text")
    with RawClient(server.address) as client:
        client.request(b"qSupported")
        search = b"qSearch:memory:%x;%x;" % (text, -text % (1 << 64)) + b"nowhere" * 99
        client.send(frame(search) + frame(b"qC") * 3000)
        server.wait_printed("sends without waiting for replies: dropped")
    guest.wait_given_back()


def test_searching_everything_can_be_interrupted(client: RawClient) -> None:
    client.send(frame(b"qSearch:memory:0;ffffffffffffffff;" + b"\1\2\3nowhere" * 9))
    client.send(b"\x03")
    reply = client.receive()
    assert reply.startswith(b"E") or reply == b"0"


def test_range_stepping(server: KvmgdbServer, guest: WatchedGuest, hot: int) -> None:
    """`vCont;r` steps until the vCPU has left the range: one reply."""
    with RawClient(server.address) as client:
        client.request(b"?")
        assert client.request(b"Z1,%x,1" % hot) == b"OK"
        client.send(frame(b"vCont;c"))
        stop = client.receive()
        thread = b"1" if b"thread:1;" in stop else b"2"
        assert client.request(b"z1,%x,1" % hot) == b"OK"
        client.send(frame(b"vCont;r%x,%x:%b" % (hot, hot + 12, thread)))
        assert client.receive().startswith(b"T05")
        rip = guest.register("RIP", int(thread) - 1)
        assert not hot <= rip < hot + 12
        # A range that the vCPU is not in is left with the first step. An instruction
        # with a repeat prefix is stepped in place.
        for _ in range(8):
            client.send(frame(b"vCont;r%x,%x:%b" % (hot, hot, thread)))
            assert client.receive().startswith(b"T05")
            if guest.register("RIP", int(thread) - 1) != rip:
                break
        else:
            pytest.fail(f"the vCPU does not leave {rip:#x}")


def test_stepping_one_vcpu(server: KvmgdbServer, guest: WatchedGuest) -> None:
    with RawClient(server.address) as client:
        client.request(b"?")
        other = guest.hmp("info registers", 0)
        before = guest.hmp("info registers", 1)
        for _ in range(3):
            client.send(frame(b"vCont;s:2"))
            assert b"thread:2;" in client.receive()
        assert guest.hmp("info registers", 0) == other
        assert guest.hmp("info registers", 1) != before
