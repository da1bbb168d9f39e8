"""Types by name, and what lies in guest memory as objects of those types.

``kernel.object("task_struct", address).member("comm").string()``: each step is
another object, and memory is read where a value is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from kvmgdb.errors import GuestDataError, NotFoundError
from kvmgdb.linux.native import BtfTable, Kind, Member, Type

if TYPE_CHECKING:
    from kvmgdb.linux.kernel import Kernel

_MAX_OBJECT = 1 << 20
_MAX_LIST = 1 << 17
_ADDRESS_MASK = (1 << 64) - 1
_AGGREGATES = (Kind.STRUCT, Kind.UNION)


class Types:
    """The types of a kernel or module, by name."""

    def __init__(self, table: BtfTable) -> None:
        self.table = table
        self._members: dict[tuple[int, str], Member] = {}
        self._named: dict[str, Type] = {}

    def find(self, name: str) -> Type | None:
        """A structure, union, enumeration, typedef or basic type, in this order;
        "struct NAME", "union NAME" and "enum NAME" say which."""
        word, _, rest = name.partition(" ")
        if word == "struct":
            return self.table.find(rest, Kind.STRUCT)
        if word == "union":
            return self.table.find(rest, Kind.UNION)
        if word == "enum":
            return self.table.find(rest, Kind.ENUM, Kind.ENUM64)
        for kinds in (_AGGREGATES, (Kind.ENUM, Kind.ENUM64), (Kind.TYPEDEF, Kind.INT, Kind.FLOAT)):
            if (found := self.table.find(name, *kinds)) is not None:
                return found
        return None

    def named(self, name: str) -> Type:
        """As :meth:`find`. Raises NotFoundError."""
        if name not in self._named:
            found = self.find(name)
            if found is None:
                raise NotFoundError(f"the guest's kernel has no type {name}")
            self._named[name] = found
        return self._named[name]

    def find_member(self, type_id: int, name: str) -> Member | None:
        key = (type_id, name)
        if key not in self._members:
            member = self.table.find_member(type_id, name)
            if member is None:
                return None
            self._members[key] = member
        return self._members[key]

    def offset(self, type_name: str, path: str) -> int:
        """Bytes from the start of a type to a member: "thread.sp"."""
        found = self.named(type_name)
        offset = 0
        for name in path.split("."):
            member = self.find_member(found.id, name)
            if member is None:
                raise NotFoundError(f"{type_name} has no member {path}")
            offset += member.offset
            found = self.table.strip(member.type)
        return offset

    def has_member(self, type_name: str, name: str) -> bool:
        found = self.find(type_name)
        return found is not None and self.find_member(found.id, name) is not None

    def size(self, type_name: str) -> int:
        """In bytes."""
        return self.table.size(self.named(type_name).id)

    def enumeration(self, type_name: str) -> dict[str, int]:
        """Values by name; empty where there is no such enumeration."""
        found = self.table.find(type_name, Kind.ENUM, Kind.ENUM64)
        return dict(self.table.values(found.id)) if found is not None else {}


class Object:
    """A typed place in guest memory. ``type`` has neither qualifiers nor typedefs.

    :meth:`snapshot` reads all of it at once, so that its members are of one
    moment and cost no further reads.
    """

    def __init__(
        self,
        kernel: Kernel,
        types: Types,
        declared: Type,
        address: int,
        member: Member | None = None,
        data: bytes | None = None,
    ) -> None:
        self.kernel = kernel
        self.types = types
        self.type = types.table.strip(declared.id)
        self.address = address & _ADDRESS_MASK
        self._member = member
        self._data = data

    def __repr__(self) -> str:
        return f"<{self.type.kind.name.lower()} {self.type.name} at {self.address:#x}>"

    @cached_property
    def size(self) -> int:
        """In bytes. Raises GuestDataError where it has none."""
        return self.types.table.size(self.type.id)

    # -- to other objects

    def member(self, path: str) -> Object:
        """A member, also of anonymous parts; "a.b" is the b of a, and pointers on
        the way are followed. Raises NotFoundError."""
        found = self
        for name in path.split("."):
            found = found._one_member(name)
        return found

    def has(self, name: str) -> bool:
        return (
            self.type.kind in _AGGREGATES and self.types.find_member(self.type.id, name) is not None
        )

    def _one_member(self, name: str) -> Object:
        if self.type.kind is Kind.PTR:
            return self.target()._one_member(name)
        if self.type.kind not in _AGGREGATES:
            raise NotFoundError(f"{self!r} has no members")
        member = self.types.find_member(self.type.id, name)
        if member is None:
            raise NotFoundError(f"struct {self.type.name} has no member {name}")
        declared = self.types.table.type(member.type)
        data = None
        if self._data is not None and not member.bits:
            data = self._data[member.offset :]
        elif self._data is not None:
            data = self._data
        place = member.offset if not member.bits else 0
        return Object(
            self.kernel,
            self.types,
            declared,
            self.address + place,
            member if member.bits else None,
            data,
        )

    def target(self) -> Object:
        """What a pointer points to. Raises GuestDataError for a null pointer."""
        address = self.integer()
        if self.type.kind is not Kind.PTR:
            raise NotFoundError(f"{self!r} is no pointer")
        if address == 0:
            raise GuestDataError(f"the pointer at {self.address:#x} is null")
        return Object(self.kernel, self.types, self.types.table.type(self.type.target), address)

    def element(self, index: int) -> Object:
        """An element of an array, or what lies that far behind a pointer. Raises
        NotFoundError outside an array of known size."""
        if self.type.kind is Kind.ARRAY and self.type.count and not 0 <= index < self.type.count:
            raise NotFoundError(f"{self!r} has no element {index}")
        declared = self.types.table.type(self.type.target)
        size = self.types.table.size(declared.id)
        if self.type.kind is Kind.PTR:
            start, data = self.integer(), None
        elif self.type.kind is Kind.ARRAY:
            start = self.address
            data = self._data[index * size :] if self._data is not None else None
        else:
            raise NotFoundError(f"{self!r} has no elements")
        return Object(self.kernel, self.types, declared, start + index * size, None, data)

    def cast(self, type_name: str) -> Object:
        """The same place as another type."""
        return Object(self.kernel, self.types, self.types.named(type_name), self.address)

    def container(self, type_name: str, path: str) -> Object:
        """The object of which this is a member (container_of)."""
        offset = self.types.offset(type_name, path)
        named = self.types.named(type_name)
        return Object(self.kernel, self.types, named, self.address - offset)

    def list(self, type_name: str, path: str) -> Iterator[Object]:
        """The objects of a list_head list, of which this is the head. Raises
        GuestDataError where the list does not come back to its head, after what
        could be read of it."""
        offset = self.types.offset(type_name, path)
        named = self.types.named(type_name)
        seen = {self.address}
        at = self.kernel.u64(self.address)
        while at != self.address:
            if at in seen or len(seen) > _MAX_LIST:
                raise GuestDataError(f"the list at {self.address:#x} does not end")
            seen.add(at)
            following = self.kernel.u64(at)
            yield Object(self.kernel, self.types, named, at - offset)
            at = following

    # -- values

    def snapshot(self) -> Object:
        """The same object with a copy of its memory."""
        if self.size > _MAX_OBJECT:
            raise GuestDataError(f"{self!r} takes {self.size} bytes")
        data = self.kernel.read(self.address, self.size)
        return Object(self.kernel, self.types, self.type, self.address, self._member, data)

    def read(self, length: int | None = None) -> bytes:
        """Its bytes, or ``length`` of them."""
        wanted = self.size if length is None else length
        if wanted > _MAX_OBJECT:
            raise GuestDataError(f"{self!r} takes {wanted} bytes")
        if self._data is not None and len(self._data) >= wanted and self._member is None:
            return self._data[:wanted]
        return self.kernel.read(self.address, wanted)

    def integer(self) -> int:
        """The value of an integer, enumeration, pointer or bit field. A structure
        with one member (atomic_t, kuid_t) has the value of that."""
        if self._member is not None:
            return self._bit_field(self._member)
        if self.type.kind in _AGGREGATES and self.type.count == 1:
            return Object(
                self.kernel,
                self.types,
                self.types.table.type(self.types.table.member(self.type.id, 0).type),
                self.address,
                None,
                self._data,
            ).integer()
        if self.type.kind not in (Kind.INT, Kind.ENUM, Kind.ENUM64, Kind.PTR):
            raise NotFoundError(f"{self!r} is no number")
        data = self.read()
        return int.from_bytes(data, "little", signed=self.type.signed)

    def _bit_field(self, member: Member) -> int:
        first, last = member.bit_offset // 8, (member.bit_offset + member.bits - 1) // 8
        if self._data is not None:
            data = self._data[first : last + 1]
        else:
            data = self.kernel.read(self.address + first, last + 1 - first)
        value = int.from_bytes(data, "little") >> member.bit_offset % 8
        value &= (1 << member.bits) - 1
        if self.type.signed and value >> (member.bits - 1):
            value -= 1 << member.bits
        return value

    def string(self) -> str:
        """The text of a char array, or of what a char pointer points to."""
        if self.type.kind is Kind.PTR:
            return self.kernel.string(self.integer())
        data = self.read()
        return data.partition(b"\0")[0].decode("utf-8", "backslashreplace")
