"""Names of Rust's mangling, against those that binutils makes of them."""

from __future__ import annotations

import random
import re
import subprocess
import time

import pytest

from kvmgdb.profiler.demangle import demangle
from kvmgdb.profiler.rust_names import demangle_rust
from tests.support.require import requires

BASIC = "abcdefhijlmnostuxyz"
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
CONSTANTS = {"h": "7b_", "j": "_", "x": "n2a_", "b": "1_", "c": "61_", "y": "ffffffffffffffff_"}


class Maker:
    """Makes a mangled name by the grammar, of whose parts later ones may be repeats."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.name = ""
        self._paths: list[int] = []
        self._types: list[int] = []
        self._path(4)

    def _number(self, value: int) -> str:
        if not value:
            return "_"
        value, text = value - 1, ""
        while value or not text:
            value, digit = divmod(value, 62)
            text = DIGITS[digit] + text
        return f"{text}_"

    def _identifier(self, disambiguated: bool = True) -> None:
        name = self._random.choice(("core", "fmt", "_private", "new2", "Vec", "9lives", "x" * 12))
        if disambiguated and self._random.random() < 0.3:
            self.name += f"s{self._number(self._random.randrange(200))}"
        self.name += f"{len(name)}{'_' if not name[0].isalpha() else ''}{name}"

    def _repeat(self, places: list[int]) -> bool:
        if not places or self._random.random() < 0.7:
            return False
        self.name += f"B{self._number(self._random.choice(places))}"
        return True

    def _path(self, depth: int) -> None:
        if self._repeat(self._paths):
            return
        start = len(self.name)
        tag = "C" if not depth else self._random.choice("CNNNNMXYI")
        self.name += tag
        match tag:
            case "C":
                self._identifier()
            case "N":
                self.name += self._random.choice("vtCS")
                self._path(depth - 1)
                self._identifier()
            case "M":
                self._path(depth - 1)
                self._type(depth - 1)
            case "X":
                self._path(depth - 1)
                self._type(depth - 1)
                self._path(depth - 1)
            case "Y":
                self._type(depth - 1)
                self._path(depth - 1)
            case "I":
                self._path(depth - 1)
                for _ in range(self._random.randrange(1, 4)):
                    self._argument(depth - 1)
                self.name += "E"
        self._paths.append(start)

    def _argument(self, depth: int) -> None:
        kind = self._random.random()
        if kind < 0.2:
            self.name += "L_"
        elif kind < 0.5:
            self.name += "K"
            self._constant()
        else:
            self._type(depth)

    def _constant(self) -> None:
        tag = self._random.choice(list(CONSTANTS))
        self.name += tag + CONSTANTS[tag]

    def _type(self, depth: int) -> None:
        if self._repeat(self._types):
            return
        start = len(self.name)
        tag = self._random.choice(BASIC if depth <= 0 else "RQPOASTFDNN")
        if tag in "N" or (depth > 0 and tag == "D"):
            if tag == "D":
                self.name += "D"
                self._path(depth - 1)
                if self._random.random() < 0.5:
                    self.name += "p"
                    self._identifier(disambiguated=False)
                    self._type(depth - 1)
                self.name += "EL_"
            else:
                self.name += "Nt"
                self._path(depth - 1)
                self._identifier()
        else:
            self.name += tag
            if depth > 0:
                self._compound(tag, depth)
        self._types.append(start)

    def _compound(self, tag: str, depth: int) -> None:
        match tag:
            case "T":
                for _ in range(self._random.randrange(3)):
                    self._type(depth - 1)
                self.name += "E"
            case "F":
                self.name += self._random.choice(("", "U", "KC", "UKC", "K6system"))
                self._type(depth - 1)
                self.name += "E"
                self._type(depth - 1)
            case "A":
                self._type(depth - 1)
                self.name += "j7b_"
            case _:
                self._type(depth - 1)


def plain(text: str) -> str:
    """binutils' output without the crates' hashes and the types of constants."""
    text = re.sub(r"(?<=\w)\[[0-9a-f]+\]", "", text)
    return re.sub(r"(?<=[\w'])((?:: )(?:[iu](?:8|16|32|64|size)|bool|char))\b", "", text)


@requires("cc")
def test_as_binutils_has_them() -> None:
    names = [f"_R{Maker(seed).name}" for seed in range(3000)]
    names = [name for name in names if len(name) < 1000]
    done = subprocess.run(
        ["c++filt", "-s", "rust"],
        input="\n".join(names),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    compared = 0
    for name, theirs in zip(names, done.stdout.splitlines(), strict=True):
        if theirs == name:
            continue
        assert demangle_rust(name) == plain(theirs), name
        compared += 1
    assert compared > 1500


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("_RNvC7mycrate3foo", "mycrate::foo"),
        ("_RNCNvC7mycrate4main0B3_", "mycrate::main::{closure#0}"),
        (
            "_RNvXs_C7mycrateNtB4_3FooNtNtC4core5clone5Clone5clone",
            "<mycrate::Foo as core::clone::Clone>::clone",
        ),
        ("_RINvNtC3std3mem8align_ofjEC7mycrate", "std::mem::align_of::<usize>"),
        ("_RNvC7mycrate3foo.llvm.1234", "mycrate::foo"),
        ("_RNvC7mycrateu8gdel_5qa", "mycrate::gödel"),
        ("_RMC0FG_RL0_hEu", "<for<'a> fn(&'a u8)>"),
    ],
)
def test_known_names(mangled: str, name: str) -> None:
    assert demangle(mangled) == name


@pytest.mark.parametrize(
    "name",
    [
        "_R",
        "_RNvC7mycrate",
        "_RNvC9mycrate3foo",
        "_RNvB_3foo",
        "_Read",
        "_RNvC7mycrate3fooX",
        "_R9",
    ],
)
def test_what_is_none_stays(name: str) -> None:
    assert demangle(name) == name


def test_names_that_lead_into_themselves() -> None:
    """Soon, and without an end of our own."""
    begin = time.monotonic()
    for name in (
        "_RMC0TB3_E",
        "_RMC0T" + 100 * "TB3_B3_E" + "E",
        "_RMC0Th" + "".join(f"TB{place}_B{place}_E" for place in "456789abcdef") + "E",
        "_RMC0" + 900 * "R" + "h",
    ):
        assert isinstance(demangle(name), str)
    source = random.Random(3)
    for seed in range(2000):
        letters = list(Maker(seed).name)
        for _ in range(3):
            letters[source.randrange(len(letters))] = source.choice("CNBIETMXYRF_0su19")
        assert isinstance(demangle("_R" + "".join(letters)), str)
    assert time.monotonic() - begin < 240
