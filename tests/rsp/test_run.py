"""Running and stopping: ``vCont c s C S vCtrlC``, the interrupt byte, stop replies,
breakpoints and watchpoints."""

from __future__ import annotations

import re

import pytest

from kvmgdb.machine.registers import BY_NAME
from tests.machine.rom_guest import COUNTERS, RomGuest
from tests.rsp.conftest import GDB_FEATURES, NewClient, run_to
from tests.rsp.wire import Client

RIP = BY_NAME["rip"].number


def stop(reply: bytes) -> dict[str, str]:
    """The parts of a stop reply; ``signal`` is its number."""
    assert reply[:1] == b"T", reply
    items = (item.partition(":")[::2] for item in reply[3:].decode().rstrip(";").split(";"))
    return {"signal": reply[1:3].decode(), **dict(items)}


def rip(parts: dict[str, str]) -> int:
    return int.from_bytes(bytes.fromhex(parts[f"{RIP:02x}"]), "little")


def counters(client: Client) -> tuple[int, int]:
    data = bytes.fromhex(client.ask(b"m%x,10" % COUNTERS).decode())
    return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")


def test_why(client: Client, rom_guest: RomGuest) -> None:
    parts = stop(client.ask(b"?"))
    assert parts["signal"] == "05"
    assert parts["thread"] == "p1.1"
    assert rip(parts) == rom_guest.symbol("work")


def test_a_stop_reply_carries_registers(client: Client) -> None:
    parts = stop(client.ask(b"vCont;s:p1.1"))
    block = client.ask(b"g")
    shown = set()
    for key, text in parts.items():
        if re.fullmatch(r"[0-9a-f]{2,}", key) and key not in ("core",):
            register = next(r for r in BY_NAME.values() if r.number == int(key, 16))
            offset = 2 * register.offset
            assert text.encode() == block[offset : offset + 2 * register.size], register.name
            shown.add(register.name)
    # What GDB needs to find the frame, after every stop.
    assert shown >= {"rip", "rsp", "rbp", "eflags"}


def test_a_stop_reply_selects_its_thread(client: Client) -> None:
    """GDB takes it for selected, and sends no ``Hg``."""
    assert client.ask(b"Hgp1.2") == b"OK"
    parts = stop(client.ask(b"vCont;s:p1.1"))
    assert parts["thread"] == "p1.1"
    key = f"{RIP:02x}"
    assert client.ask(b"p" + key.encode()).decode() == parts[key]


@pytest.mark.parametrize(
    "packet", [b"vCont;s:p1.1", b"vCont;s:p1.1;t", b"vCont;S05:p1.1", b"s", b"S05"]
)
def test_step(client: Client, rom_guest: RomGuest, packet: bytes) -> None:
    client.ask(b"Hcp1.1")
    parts = stop(client.ask(packet))
    assert (parts["signal"], parts["thread"]) == ("05", "p1.1")
    assert rip(parts) == rom_guest.symbol("work") + 3
    assert "swbreak" not in parts


def test_a_step_of_one_vcpu_holds_the_other(client: Client) -> None:
    before = counters(client)
    for _ in range(20):
        assert client.ask(b"vCont;s:p1.1").startswith(b"T05")
    after = counters(client)
    assert after[1] == before[1]
    assert after[0] > before[0]


def test_a_step_from_another_address(client: Client, rom_guest: RomGuest) -> None:
    client.ask(b"Hcp1.1")
    assert rip(stop(client.ask(b"s%x" % rom_guest.symbol("count")))) == rom_guest.symbol(
        "before_call"
    )


def test_range_stepping(client: Client, rom_guest: RomGuest) -> None:
    work, store = rom_guest.symbol("work"), rom_guest.symbol("store")
    parts = stop(client.ask(b"vCont;r%x,%x:p1.1" % (work, store)))
    assert rip(parts) == store
    # From outside of the range it is one step.
    parts = stop(client.ask(b"vCont;r%x,%x:p1.1" % (work, work + 1)))
    assert rip(parts) == store + 8


@pytest.mark.parametrize(
    ("kind", "word"), [(b"0", "swbreak"), (b"1", "hwbreak")], ids=["software", "hardware"]
)
@pytest.mark.parametrize("packet", [b"vCont;c:p1.1", b"c", b"C05", b"vCont;C02:p1.1"])
def test_breakpoint(
    client: Client, rom_guest: RomGuest, kind: bytes, word: str, packet: bytes
) -> None:
    address = rom_guest.symbol("after_call")
    client.ask(b"Hcp1.1")
    before = client.ask(b"m%x,4" % address)
    assert client.ask(b"Z%b,%x,1" % (kind, address)) == b"OK"
    # It cannot be seen.
    assert client.ask(b"m%x,4" % address) == before
    parts = stop(client.ask(packet))
    assert (parts["signal"], parts["thread"]) == ("05", "p1.1")
    assert rip(parts) == address
    assert word in parts
    assert client.ask(b"z%b,%x,1" % (kind, address)) == b"OK"
    assert client.ask(b"m%x,4" % address) == before


def test_the_reason_is_told_only_to_who_knows_it(
    client: Client, new_client: NewClient, rom_guest: RomGuest
) -> None:
    client.ask(b"D;1")
    plain = new_client()
    run_to(plain, rom_guest.symbol("work"))
    assert plain.ask(b"Z0,%x,1" % rom_guest.symbol("after_call")) == b"OK"
    parts = stop(plain.ask(b"vCont;c:1"))
    assert parts["thread"] == "1"
    assert not {"swbreak", "hwbreak"} & set(parts)
    assert plain.ask(b"z0,%x,1" % rom_guest.symbol("after_call")) == b"OK"


@pytest.mark.parametrize(
    ("kind", "word", "offset"),
    [(b"2", "watch", 0x100), (b"3", "rwatch", 0x108), (b"4", "awatch", 0x100)],
)
def test_watchpoint(
    client: Client, rom_guest: RomGuest, kind: bytes, word: str, offset: int
) -> None:
    assert client.ask(b"Z%b,%x,8" % (kind, COUNTERS + offset)) == b"OK"
    parts = stop(client.ask(b"vCont;c:p1.1"))
    assert parts["signal"] == "05"
    assert int(parts[word], 16) == COUNTERS + offset
    assert rom_guest.symbol("store") <= rip(parts) <= rom_guest.symbol("store") + 16
    assert client.ask(b"z%b,%x,8" % (kind, COUNTERS + offset)) == b"OK"


def test_removing_what_is_not_there(client: Client) -> None:
    for kind in b"01234":
        assert client.ask(b"z%c,1234,1" % kind).startswith(b"E.")


def test_inserting_twice_and_removing(client: Client, rom_guest: RomGuest) -> None:
    where = b"%x,1" % rom_guest.symbol("work")
    assert client.ask(b"Z0," + where) == client.ask(b"Z0," + where) == b"OK"
    assert client.ask(b"z0," + where) == b"OK"
    assert client.ask(b"z0," + where).startswith(b"E.")


@pytest.mark.parametrize(
    "packet",
    [b"Z", b"Z0", b"Z0,", b"Z0,1000", b"Z0,g,1", b"Zg,1000,1", b"z0,1000,", b"Z2,0,200000"],
)
def test_malformed_breakpoints(client: Client, packet: bytes) -> None:
    assert client.ask(packet).startswith(b"E.")


def test_an_unknown_kind_of_breakpoint(client: Client) -> None:
    assert client.ask(b"Z5,1000,1") == b""
    assert client.ask(b"z9,1000,1") == b""


@pytest.mark.parametrize("interrupt", ["byte", "packet"])
def test_interrupt(client: Client, interrupt: str) -> None:
    before = counters(client)
    client.send(b"vCont;c")
    assert client.quiet(0.2)
    if interrupt == "byte":
        client.feed(b"\x03")
    else:
        assert client.ask(b"vCtrlC") == b"OK"
    assert stop(client.reply())["signal"] == "02"
    after = counters(client)
    assert after[0] > before[0]
    assert client.quiet()
    assert counters(client) == after


def test_an_interrupt_of_a_stopped_guest_is_nothing(client: Client) -> None:
    client.feed(b"\x03")
    assert client.quiet()
    assert client.ask(b"vCtrlC").startswith(b"E.")
    assert client.ask(b"qC") == b"QCp1.1"


def test_two_interrupts_are_one(client: Client) -> None:
    client.send(b"vCont;c")
    client.feed(b"\x03\x03")
    assert client.reply().startswith(b"T02")
    assert client.quiet()


def test_registers_of_a_running_guest(client: Client) -> None:
    """GDB in all-stop mode asks nothing then; a client that does gets an error."""
    client.send(b"vCont;c")
    assert client.ask(b"g").startswith(b"E.")
    assert client.ask(b"Z0,1000,1").startswith(b"E.")
    client.feed(b"\x03")
    assert client.reply().startswith(b"T02")


@pytest.mark.parametrize(
    "packet",
    [
        b"vCont;",
        b"vCont;x",
        b"vCont;c:",
        b"vCont;c:p1.9",
        b"vCont;C",
        b"vCont;Cgg",
        b"vCont;s1",
        b"vCont;r",
        b"vCont;r1",
        b"vCont;r1,:p1.1",
        b"cg",
        b"sxyz",
        b"C",
        b"Cg",
        b"S",
        b"C1ff",
    ],
)
def test_malformed(client: Client, packet: bytes) -> None:
    where = client.ask(b"p%x" % RIP)
    assert client.ask(packet).startswith(b"E."), packet
    assert client.ask(b"p%x" % RIP) == where


def test_what_can_be_continued(client: Client) -> None:
    assert client.ask(b"vCont?") == b"vCont;c;C;s;S;t;r"


def test_two_debuggers_each_with_a_breakpoint(
    client: Client, new_client: NewClient, rom_guest: RomGuest
) -> None:
    other = new_client(*GDB_FEATURES)
    mine, theirs = rom_guest.symbol("after_call"), rom_guest.symbol("store")
    assert client.ask(b"Z0,%x,1" % mine) == b"OK"
    assert other.ask(b"Z0,%x,1" % theirs) == b"OK"
    client.send(b"vCont;c:p1.1")
    # The other holds the guest: it stays, and its user is told.
    assert bytes.fromhex(client.reply()[1:].decode()).startswith(b"kvmgdb: the guest stays stopped")
    other.send(b"vCont;c:p1.1")
    parts = stop(other.reply())
    assert rip(parts) == theirs
    assert client.quiet()
    other.send(b"vCont;s:p1.1")
    assert stop(other.reply())["signal"] == "05"
    assert other.ask(b"z0,%x,1" % theirs) == b"OK"
    other.send(b"vCont;c:p1.1")
    assert rip(stop(client.reply())) == mine
    other.feed(b"\x03")
    assert stop(other.reply())["signal"] == "02"
    assert client.ask(b"z0,%x,1" % mine) == b"OK"
