"""Rust's mangling, version 0 (RFC 2603; "v0 symbol format" of The rustc book)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_BASIC = {
    "a": "i8",
    "b": "bool",
    "c": "char",
    "d": "f64",
    "e": "str",
    "f": "f32",
    "h": "u8",
    "i": "isize",
    "j": "usize",
    "l": "i32",
    "m": "u32",
    "n": "i128",
    "o": "u128",
    "p": "_",
    "s": "i16",
    "t": "u16",
    "u": "()",
    "v": "...",
    "x": "i64",
    "y": "u64",
    "z": "!",
}
_SIGNED, _UNSIGNED = frozenset("asxnil"), frozenset("htyojm")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# A guest makes names up: one may lead back into itself again and again.
_MAX_DEPTH = 100
_MAX_OUTPUT = 4096
_MAX_STEPS = 20_000
_MAX_NUMBER = 1 << 64
_MAX_LIFETIMES = 64


class _NotMangledError(Exception):
    """The name is none of this mangling."""


def demangle_rust(name: str) -> str | None:
    """A function's name as its programmer wrote it; None for what is no such name."""
    mangled = name.removeprefix("_R")
    # What follows a dot, LLVM has added.
    mangled = mangled.partition(".")[0]
    if mangled == name or not mangled.isascii() or not mangled[:1].isupper():
        return None
    reader = _Reader(mangled)
    try:
        reader.path(in_value=True)
        text = reader.text()
        if not reader.at_end:  # the crate in which a generic function was made
            reader.path(in_value=True)
        return text if reader.at_end else None
    except _NotMangledError:
        return None


class _Reader:
    """Reads ``mangled`` from its beginning, and collects what that means."""

    def __init__(self, mangled: str) -> None:
        self._mangled = mangled
        self._at = 0
        self._output: list[str] = []
        self._length = self._depth = self._steps = self._lifetimes = 0

    def text(self) -> str:
        return "".join(self._output)

    @property
    def at_end(self) -> bool:
        return self._at == len(self._mangled)

    # -- letters and numbers

    def _write(self, text: str) -> None:
        self._length += len(text)
        if self._length > _MAX_OUTPUT:
            raise _NotMangledError
        self._output.append(text)

    def _next(self) -> str:
        if self.at_end:
            raise _NotMangledError
        self._at += 1
        return self._mangled[self._at - 1]

    def _take(self, letter: str) -> bool:
        if self._mangled.startswith(letter, self._at):
            self._at += 1
            return True
        return False

    def _base62(self) -> int:
        """``_`` is 0, and every number else one more than its digits."""
        value = 0
        if self._take("_"):
            return 0
        while (letter := self._next()) != "_":
            value = value * 62 + _digit(letter)
            if value >= _MAX_NUMBER:
                raise _NotMangledError
        return value + 1

    def _optional(self, letter: str) -> int:
        return self._base62() + 1 if self._take(letter) else 0

    def _identifier(self) -> str:
        encoded = self._take("u")
        start = self._at
        while not self.at_end and self._mangled[self._at].isdigit():
            self._at += 1
        digits = self._mangled[start : self._at]
        if not digits or len(digits) > 5 or (digits[0] == "0" and len(digits) > 1):
            raise _NotMangledError
        self._take("_")
        text = self._mangled[self._at : self._at + int(digits)]
        if len(text) != int(digits):
            raise _NotMangledError
        self._at += len(text)
        return _from_punycode(text) if encoded else text

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self._depth += 1
        self._steps += 1
        if self._depth > _MAX_DEPTH or self._steps > _MAX_STEPS:
            raise _NotMangledError
        yield
        self._depth -= 1

    def _follow(self, read: Callable[[], None]) -> None:
        """What was written before, at the place that a back reference names."""
        start = self._at - 1
        place = self._base62()
        if place >= start:
            raise _NotMangledError
        here, self._at = self._at, place
        with self._deeper():
            read()
        self._at = here

    def _silently(self, read: Callable[[], None]) -> None:
        kept, length = self._output, self._length
        self._output = []
        read()
        self._output, self._length = kept, length

    def _list(self, read: Callable[[], None], separator: str = ", ") -> int:
        """Up to the letter E; gives how many there were."""
        count = 0
        while not self._take("E"):
            if count:
                self._write(separator)
            read()
            count += 1
        return count

    # -- paths

    def path(self, in_value: bool = False) -> None:
        with self._deeper():
            self._path(self._next(), in_value)

    def _path(self, tag: str, in_value: bool) -> None:
        match tag:
            case "C":
                self._optional("s")
                self._write(self._identifier())
            case "M":
                self._optional("s")
                self._silently(self.path)
                self._write("<")
                self._type()
                self._write(">")
            case "X" | "Y":
                if tag == "X":
                    self._optional("s")
                    self._silently(self.path)
                self._write("<")
                self._type()
                self._write(" as ")
                self.path()
                self._write(">")
            case "N":
                self._nested(in_value)
            case "I":
                self.path(in_value)
                self._write("::<" if in_value else "<")
                self._list(self._generic_argument)
                self._write(">")
            case "B":
                self._follow(lambda: self.path(in_value))
            case _:
                raise _NotMangledError

    def _nested(self, in_value: bool) -> None:
        namespace = self._next()
        if not namespace.isalpha():
            raise _NotMangledError
        self.path(in_value)
        number = self._optional("s")
        name = self._identifier()
        if namespace.isupper():
            kind = {"C": "closure", "S": "shim"}.get(namespace, namespace)
            self._write(f"::{{{kind}{':' if name else ''}{name}#{number}}}")
        elif name:
            self._write(f"::{name}")

    def _generic_argument(self) -> None:
        if self._take("L"):
            self._lifetime(self._base62())
        elif self._take("K"):
            self._constant()
        else:
            self._type()

    def _lifetime(self, index: int) -> None:
        if not index:
            self._write("'_")
            return
        depth = self._lifetimes - index
        if depth < 0:
            raise _NotMangledError
        self._write(f"'{chr(ord('a') + depth)}" if depth < 26 else f"'_{depth}")

    @contextmanager
    def _binder(self) -> Iterator[None]:
        count = self._optional("G")
        if count > _MAX_LIFETIMES:
            raise _NotMangledError
        if count:
            self._write("for<")
            for number in range(count):
                self._lifetimes += 1
                self._write(", " if number else "")
                self._lifetime(1)
            self._write("> ")
        yield
        self._lifetimes -= count

    # -- types

    def _type(self) -> None:
        with self._deeper():
            tag = self._next()
            if tag in _BASIC:
                self._write(_BASIC[tag])
            else:
                self._compound(tag)

    def _compound(self, tag: str) -> None:
        match tag:
            case "R" | "Q":
                self._write("&")
                if self._take("L") and (index := self._base62()):
                    self._lifetime(index)
                    self._write(" ")
                self._write("mut " if tag == "Q" else "")
                self._type()
            case "P" | "O":
                self._write("*mut " if tag == "O" else "*const ")
                self._type()
            case "A" | "S":
                self._write("[")
                self._type()
                if tag == "A":
                    self._write("; ")
                    self._constant()
                self._write("]")
            case "T":
                self._write("(")
                self._write(",)" if self._list(self._type) == 1 else ")")
            case "F":
                with self._binder():
                    self._function()
            case "D":
                self._write("dyn ")
                with self._binder():
                    self._list(self._dynamic_trait, " + ")
                if not self._take("L"):
                    raise _NotMangledError
                if index := self._base62():
                    self._write(" + ")
                    self._lifetime(index)
            case "B":
                self._follow(self._type)
            case _:
                self._path(tag, in_value=False)

    def _function(self) -> None:
        self._write("unsafe " if self._take("U") else "")
        if self._take("K"):
            abi = "C" if self._take("C") else self._identifier().replace("_", "-")
            self._write(f'extern "{abi}" ')
        self._write("fn(")
        self._list(self._type)
        self._write(")")
        if not self._take("u"):
            self._write(" -> ")
            self._type()

    def _dynamic_trait(self) -> None:
        """A trait, its generic arguments and the types that it is bound to in one list."""
        opened = self._open_path()
        while self._take("p"):
            self._write(", " if opened else "<")
            opened = True
            self._write(f"{self._identifier()} = ")
            self._type()
        self._write(">" if opened else "")

    def _open_path(self) -> bool:
        """A path; whether its generic arguments are still open at its end."""
        with self._deeper():
            if self._take("B"):
                found: list[bool] = []
                self._follow(lambda: found.append(self._open_path()))
                return found[0]
            if not self._take("I"):
                self.path()
                return False
            self.path()
            self._write("<")
            self._list(self._generic_argument)
            return True

    # -- constants

    def _constant(self) -> None:
        with self._deeper():
            tag = self._next()
            if tag == "p":
                self._write("_")
            elif tag == "B":
                self._follow(self._constant)
            elif tag in _SIGNED or tag in _UNSIGNED:
                self._write("-" if tag in _SIGNED and self._take("n") else "")
                digits, value = self._hexadecimal()
                self._write(str(value) if len(digits) <= 16 else f"0x{digits}")
            elif tag == "b":
                value = self._hexadecimal()[1]
                if value > 1:
                    raise _NotMangledError
                self._write("true" if value else "false")
            elif tag == "c":
                self._write(_quoted(self._hexadecimal()[1]))
            else:
                raise _NotMangledError

    def _hexadecimal(self) -> tuple[str, int]:
        end = self._mangled.find("_", self._at)
        digits = self._mangled[self._at : end]
        if end < 0 or len(digits) > 64 or digits.strip("0123456789abcdef"):
            raise _NotMangledError
        self._at = end + 1
        return digits, int(digits or "0", 16)


def _digit(letter: str) -> int:
    value = _DIGITS.find(letter)
    if value < 0:
        raise _NotMangledError
    return value


def _from_punycode(text: str) -> str:
    # Rust writes the delimiter as an underscore.
    plain, _, encoded = text.rpartition("_")
    try:
        return (
            f"{plain}-{encoded}".encode().decode("punycode")
            if plain
            else (encoded.encode().decode("punycode"))
        )
    except (UnicodeError, OverflowError, ValueError):
        raise _NotMangledError from None


def _quoted(value: int) -> str:
    if value > 0x10FFFF or 0xD800 <= value < 0xE000:
        raise _NotMangledError
    escaped = {9: "\\t", 10: "\\n", 13: "\\r", 39: "\\'", 92: "\\\\"}.get(value)
    if escaped is None:
        escaped = chr(value) if 32 <= value < 127 else f"\\u{{{value:x}}}"
    return f"'{escaped}'"
