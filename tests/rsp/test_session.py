"""The session itself: acknowledgements, features, threads, detach and kill."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from kvmgdb.errors import TargetGoneError
from kvmgdb.machine.qemu import QemuMachine
from kvmgdb.rsp.dispatch import PACKET_SIZE
from tests.machine.rom_guest import RomGuest
from tests.rsp.conftest import GDB_FEATURES, NewClient, process_of
from tests.rsp.wire import Client, Rig, frame
from tests.support.require import requires


def test_a_good_packet_is_acknowledged_and_a_bad_one_is_not(client: Client) -> None:
    client.wire.take_raw()
    client.feed(b"$qC#b4")
    assert re.fullmatch(rb"\+\$QCp1\.1#..", client.wire.take_raw())
    client.feed(b"$qC#b5")
    assert client.wire.take_raw() == b"-"
    assert any("wrong checksum" in line for line in client.rig.log)


def test_a_first_packet_that_was_sent_twice_gets_one_reply(rig: Rig) -> None:
    """GDB does not wait for ever for a server that it has started."""
    client = Client(rig)
    client.feed(2 * frame(b"qSupported:multiprocess+"))
    assert client.reply().startswith(b"PacketSize=")
    assert client.ask(b"vMustReplyEmpty") == b""
    assert client.wire.sent.count(b"PacketSize=") == 1


def test_a_nak_brings_the_last_packet_again(client: Client) -> None:
    client.wire.take_raw()
    client.feed(frame(b"qC"))
    first = client.wire.take_raw()
    client.feed(b"-")
    assert client.wire.take_raw() == first.removeprefix(b"+")
    client.feed(b"-")
    assert client.wire.take_raw() == first.removeprefix(b"+")
    # A bad packet in between is no packet of ours.
    client.feed(b"+$qC#00-")
    assert client.wire.take_raw() == b"-" + first.removeprefix(b"+")


def test_acknowledgements_end_behind_their_own_packet(client: Client) -> None:
    client.wire.take_raw()
    client.feed(frame(b"QStartNoAckMode"))
    assert client.wire.take_raw() == b"+$OK#9a"
    client.feed(b"+" + frame(b"qC"))
    assert client.wire.take_raw().startswith(b"$QC")
    # Without acknowledgements nobody asks for a packet again: it is an error.
    client.feed(b"$qC#00")
    assert client.wire.take_raw().startswith(b"$E")
    client.feed(b"-")
    assert client.wire.take_raw() == b""


@pytest.mark.parametrize("acks", [True, False])
def test_a_packet_that_is_too_long_is_answered(client: Client, acks: bool) -> None:
    if not acks:
        client.ask(b"QStartNoAckMode")
    client.wire.take_raw()
    client.feed(frame(b"X0,%x:" % PACKET_SIZE + b"a" * PACKET_SIZE))
    reply = client.wire.take_raw()
    assert re.fullmatch(rb"(\+|)\$E[^#]+#..", reply), reply
    assert reply.startswith(b"+") is acks
    assert client.ask(b"qC") == b"QCp1.1"


def test_an_escape_at_the_end_of_a_packet(client: Client) -> None:
    client.wire.take_raw()
    client.feed(b"$m0,1}#%02x" % (sum(b"m0,1}") % 256))
    assert client.wire.take_raw().startswith(b"+$E.")
    assert client.ask(b"qC") == b"QCp1.1"


def test_who_sends_without_reading_is_dropped(client: Client) -> None:
    client.feed(frame(b"qSearch:memory:0;400000;nothing") + frame(b"qC") * 1000)
    assert client.wire.closed
    assert any("without waiting" in line for line in client.rig.log)


def test_what_is_announced(rig: Rig) -> None:
    client = Client(rig)
    reply = client.ask(b"qSupported:multiprocess+;swbreak+;vContSupported+;nonsense;x=;-")
    features = reply.split(b";")
    for feature in (b"multiprocess+", b"QStartNoAckMode+", b"qXfer:features:read+"):
        assert feature in features
    for feature in (b"qXfer:threads:read+", b"vContSupported+", b"swbreak+", b"hwbreak+"):
        assert feature in features
    assert client.ask(b"qSupported").split(b";")[0] == features[0]


def test_what_an_unknown_packet_gets(client: Client) -> None:
    for packet in (b"vMustReplyEmpty", b"vFoo", b"", b"qFoo", b"QNonStop:1", b"jThreadsInfo"):
        assert client.ask(packet) == b"", packet


def test_attached(client: Client) -> None:
    assert client.ask(b"qAttached") == client.ask(b"qAttached:1") == b"1"
    assert client.ask(b"!") == b"OK"


@pytest.mark.parametrize(
    ("features", "ids"), [((), ["1", "2"]), (("multiprocess",), ["p1.1", "p1.2"])]
)
def test_threads(new_client: NewClient, features: tuple[str, ...], ids: list[str]) -> None:
    client = new_client(*features)
    assert client.ask(b"qfThreadInfo") == b"m" + ",".join(ids).encode()
    assert client.ask(b"qsThreadInfo") == b"l"
    assert client.ask(b"qC").decode() in [f"QC{thread}" for thread in ids]
    reply = client.ask(b"qXfer:threads:read::0,1000")
    assert reply[:1] == b"l"
    threads = list(ElementTree.fromstring(reply[1:].decode()))
    assert [thread.attrib["id"] for thread in threads] == ids
    assert [thread.attrib["name"] for thread in threads] == ["vCPU 0", "vCPU 1"]
    assert [thread.attrib["core"] for thread in threads] == ["0", "1"]
    for index, thread in enumerate(ids):
        assert client.ask(f"T{thread}".encode()) == b"OK"
        extra = bytes.fromhex(client.ask(f"qThreadExtraInfo,{thread}".encode()).decode())
        assert re.fullmatch(rf"vCPU {index} \[(running|halted)\]", extra.decode())


@pytest.mark.parametrize(
    "packet",
    [
        b"H",
        b"Hg",
        b"Hx1",
        b"Hgp1.9",
        b"Hgp2.1",
        b"T",
        b"T9",
        b"Tp1.-1",
        b"T0",
        b"Tx",
        b"qThreadExtraInfo,",
        b"qThreadExtraInfo,9",
        b"qXfer:threads:read::",
        b"D;2",
        b"D;g",
        b"vAttach;",
        b"vAttach;2",
        b"vKill;",
        b"vKill;2",
        b"qRcmd,zz",
        b"qRcmd,0",
    ],
)
def test_malformed(client: Client, packet: bytes) -> None:
    assert client.ask(packet).startswith(b"E."), packet
    assert client.ask(b"qC") == b"QCp1.1"


def test_selecting_threads(client: Client) -> None:
    for selection in (b"Hg0", b"Hc-1", b"Hcp1.-1", b"Hgp1.2", b"Hgp0.0", b"Hc0"):
        assert client.ask(selection) == b"OK"


def test_errors_are_text_only_where_that_was_announced(new_client: NewClient) -> None:
    assert (
        new_client("error-message").ask(b"m8000000,1").startswith(b"E.cannot access guest memory")
    )
    assert re.fullmatch(rb"E[0-9a-f]{2}", new_client().ask(b"m8000000,1"))


def test_monitor(client: Client) -> None:
    assert "translate ADDRESS" in client.monitor("help")
    assert re.search(r"vCPUs +2", client.monitor("info"))
    assert "unknown command: 'nonsense'" in client.monitor("nonsense")
    assert "No closing quotation" in client.monitor("info 'x")
    assert "is not an address" in client.monitor("translate nowhere")
    assert "not mapped on vCPU 0" in client.monitor("translate 0x8000000")
    assert client.monitor("")
    assert "translate" in client.monitor("help")


def test_a_debugger_that_has_not_spoken_stops_nothing(rig: Rig) -> None:
    Client(rig)
    assert rig.machine is None


def test_detach_and_attach_again(client: Client, rom_guest: RomGuest) -> None:
    assert client.ask(b"Z0,%x,1" % rom_guest.symbol("work")) == b"OK"
    assert client.ask(b"D;1") == b"OK"
    assert client.ask(b"g").startswith(b"E.")
    assert client.ask(b"qC").startswith(b"E")
    assert client.ask(b"?").startswith(b"W00")
    assert client.ask(b"vAttach;1").startswith(b"T05")
    # The breakpoint went with the first attachment.
    assert client.ask(b"z0,%x,1" % rom_guest.symbol("work")).startswith(b"E.")
    assert client.ask(b"D") == b"OK"


def test_a_guest_that_ran_runs_again_after_the_last_debugger(
    rom_guest: RomGuest, rig: Rig, new_client: NewClient
) -> None:
    rom_guest.qmp("cont")
    client = new_client(*GDB_FEATURES)
    assert client.ask(b"?").startswith(b"T")
    client.close()
    assert rom_guest.qmp("query-status")["running"] is True
    rom_guest.qmp("stop")
    again = new_client(*GDB_FEATURES)
    again.close()
    assert rom_guest.qmp("query-status")["running"] is False


def test_a_machine_of_others_is_not_killed(client: Client, rom_guest: RomGuest) -> None:
    reply = client.ask(b"vKill;1")
    assert reply.startswith(b"E.kvmgdb does not kill")
    client.send(b"k")
    assert client.wire.closed
    assert rom_guest.running


@requires("qemu", "cc")
def test_a_machine_that_goes_away() -> None:
    with RomGuest() as guest:
        process = process_of(guest)
        rig = Rig(lambda: QemuMachine.open_process(process))
        client = rig.client(*GDB_FEATURES)
        other = rig.client()
        client.send(b"vCont;c")
        client.reply()  # the other one holds the guest
        other.send(b"vCont;c")
        guest.process.kill()
        assert client.reply() == b"W00;process:1"
        assert other.reply() == b"W00"
        for packet in (b"g", b"m0,1", b"vCont;c", b"qC", b"Z0,0,1", b"Hg0"):
            assert client.ask(packet)[:1] in (b"E", b"W"), packet
        assert client.ask(b"qfThreadInfo") == b"l"
        with pytest.raises(TargetGoneError):
            _ = rig.debuggee.machine
        rig.close()
