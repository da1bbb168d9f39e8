"""The target description says what the register file is."""

from __future__ import annotations

from xml.etree import ElementTree

from kvmgdb.machine.registers import (
    BY_NAME,
    FILE_SIZE,
    REGISTERS,
    STOP_REGISTERS,
    STOP_SIZE,
    RegisterFile,
)
from kvmgdb.rsp.description import target_description
from tests.rsp.wire import Client

# Types that GDB has without a definition (GDB manual, "Predefined Target Types").
_PREDEFINED = {
    *("int", "int8", "int16", "int32", "int64", "int128"),
    *("uint8", "uint16", "uint32", "uint64", "uint128"),
    *("code_ptr", "data_ptr", "ieee_single", "ieee_double", "i387_ext"),
}


def description() -> ElementTree.Element:
    return ElementTree.fromstring(target_description())


def test_registers_lie_one_behind_the_other() -> None:
    offset = 0
    for number, register in enumerate(REGISTERS):
        assert (register.number, register.offset) == (number, offset), register.name
        offset += register.size
    assert offset == FILE_SIZE == len(RegisterFile().raw)
    assert len(BY_NAME) == len(REGISTERS)


def test_a_g_reply_holds_the_first_registers() -> None:
    assert REGISTERS[: len(STOP_REGISTERS)] == STOP_REGISTERS
    last = STOP_REGISTERS[-1]
    assert last.offset + last.size == STOP_SIZE


def test_the_description_lists_each_register_once() -> None:
    listed = {int(reg.attrib["regnum"]): reg.attrib for reg in description().iter("reg")}
    assert len(list(description().iter("reg"))) == len(REGISTERS)
    for register in REGISTERS:
        attributes = listed[register.number]
        assert attributes["name"] == register.name
        assert int(attributes["bitsize"]) == 8 * register.size


def test_registers_are_in_the_feature_that_they_name() -> None:
    for feature in description().iter("feature"):
        for reg in feature.iter("reg"):
            assert BY_NAME[reg.attrib["name"]].feature == feature.attrib["name"]


def test_a_feature_comes_once_and_numbers_rise_in_it() -> None:
    features = [feature.attrib["name"] for feature in description().iter("feature")]
    assert len(features) == len(set(features))
    for feature in description().iter("feature"):
        numbers = [int(reg.attrib["regnum"]) for reg in feature.iter("reg")]
        assert numbers == sorted(numbers)


def test_types_are_defined_before_they_are_used() -> None:
    for feature in description().iter("feature"):
        known = set(_PREDEFINED)
        for element in feature:
            if element.tag in ("flags", "union", "vector"):
                used = [element.attrib["type"]] if element.tag == "vector" else []
                used += [f.attrib["type"] for f in element if element.tag == "union"]
                assert set(used) <= known
                known.add(element.attrib["id"])
            elif element.tag == "reg":
                assert element.attrib["type"] in known, element.attrib


def test_flags_fit_their_registers() -> None:
    sizes = {f.attrib["id"]: f for f in description().iter("flags")}
    for reg in description().iter("reg"):
        flags = sizes.get(reg.attrib["type"])
        if flags is not None:
            assert 8 * int(flags.attrib["size"]) == int(reg.attrib["bitsize"])
    for flags in sizes.values():
        taken: set[int] = set()
        for field in flags:
            bits = set(range(int(field.attrib["start"]), int(field.attrib["end"]) + 1))
            assert bits
            assert not bits & taken, field.attrib
            taken |= bits
        assert max(taken) < 8 * int(flags.attrib["size"])


def test_it_is_64_bit_without_an_osabi() -> None:
    root = description()
    assert [element.text for element in root.iter("architecture")] == ["i386:x86-64"]
    assert not list(root.iter("osabi"))


def test_it_arrives_whole_in_pieces_of_any_size(client: Client) -> None:
    expected = target_description().encode()
    for size in (0x10000, 0x1000, 0x3FF):
        text, reply = b"", b"m"
        while reply[:1] == b"m":
            reply = client.ask(b"qXfer:features:read:target.xml:%x,%x" % (len(text), size))
            assert reply[:1] in (b"m", b"l")
            assert len(reply) - 1 <= size
            text += reply[1:]
        assert text == expected


def test_its_edges(client: Client) -> None:
    size = len(target_description())
    assert client.ask(b"qXfer:features:read:target.xml:%x,10" % size) == b"l"
    assert client.ask(b"qXfer:features:read:target.xml:%x,10" % (size + 1000)) == b"l"
    assert client.ask(b"qXfer:features:read:other.xml:0,10") == b"E00"
    for wrong in (b"target.xml", b"target.xml:0", b"target.xml:,", b"target.xml:-1,10"):
        assert client.ask(b"qXfer:features:read:" + wrong).startswith(b"E."), wrong
