"""Which kernel it is, how it was started, and how far it has come."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass, field

from kvmgdb.errors import GuestDataError, KvmgdbError, NotFoundError
from kvmgdb.linux.kernel import Kernel

# CONFIG_PHYSICAL_START: where every x86-64 distribution links its kernel.
LINKED_AT = 0xFFFFFFFF81000000

_MAX_NOTES = 64 << 10
_MAX_VMCOREINFO = 64 << 10
_MAX_COMMAND_LINE = 4096
# A note's type and name (elf.h).
_NT_GNU_BUILD_ID = 3
# PANIC_CPU_INVALID (include/linux/panic.h)
_NO_CPU = 0xFFFFFFFF


@dataclass(frozen=True)
class Identity:
    """What a kernel says of itself. ``build_id`` is hexadecimal; ``kaslr_offset``
    in bytes from where it was linked; ``state`` "booting", "running", "panicked",
    "suspended" or "shutting down". What could not be read is None.

    ``disagreements`` are symbols for which VMCOREINFO has another address than
    kallsyms, or other facts that do not fit: empty for a healthy kernel.
    """

    banner: str | None
    release: str | None
    build_id: str | None
    command_line: str | None
    state: str
    kaslr_offset: int
    vmcoreinfo: dict[str, str] = field(default_factory=dict)
    disagreements: tuple[str, ...] = ()


def identify(kernel: Kernel) -> Identity:
    """Reads all of it. What is not there (yet) is None, never an error."""
    banner = build_id = command_line = None
    vmcoreinfo: dict[str, str] = {}
    with contextlib.suppress(KvmgdbError):
        banner = kernel.string(kernel.symbol("linux_banner")).strip()
    with contextlib.suppress(KvmgdbError):
        build_id = read_build_id(kernel)
    with contextlib.suppress(KvmgdbError):
        pointer = kernel.u64(kernel.symbol("saved_command_line"))
        command_line = kernel.string(pointer, _MAX_COMMAND_LINE)
    with contextlib.suppress(KvmgdbError):
        vmcoreinfo = read_vmcoreinfo(kernel)
    words = banner.split() if banner else []
    release = words[2] if words[:2] == ["Linux", "version"] else None
    return Identity(
        banner=banner,
        release=release,
        build_id=build_id,
        command_line=command_line,
        state=boot_state(kernel),
        kaslr_offset=kernel.base - LINKED_AT,
        vmcoreinfo=vmcoreinfo,
        disagreements=tuple(_disagreements(kernel, vmcoreinfo, release, build_id)),
    )


def read_build_id(kernel: Kernel) -> str:
    """The GNU build ID of the kernel's .notes. Raises NotFoundError."""
    start, end = kernel.symbol("__start_notes"), kernel.symbol("__stop_notes")
    if not 0 <= end - start <= _MAX_NOTES:
        raise GuestDataError(f"the kernel's notes cannot take {end - start} bytes")
    build_id = find_build_id(kernel.read(start, end - start))
    if build_id is None:
        raise NotFoundError("the kernel has no build ID")
    return build_id


def find_build_id(notes: bytes) -> str | None:
    """The GNU build ID among ELF notes, hexadecimal."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name_at = at + 12
        data_at = name_at + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\0":
            return notes[data_at : data_at + size].hex()
        at = data_at + (size + 3 & ~3)
    return None


def read_vmcoreinfo(kernel: Kernel) -> dict[str, str]:
    """The kernel's notes for crash dumps, by name. Raises as
    :func:`read_vmcoreinfo_text` does."""
    text = read_vmcoreinfo_text(kernel).decode("utf-8", "backslashreplace")
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: value for key, equals, value in pairs if equals}


def read_vmcoreinfo_text(kernel: Kernel) -> bytes:
    """The kernel's notes for crash dumps (Documentation/admin-guide/kdump/
    vmcoreinfo.rst) as it keeps them. Raises NotFoundError where there are none, or
    not yet."""
    pointer = kernel.u64(kernel.symbol("vmcoreinfo_data"))
    size = kernel.u64(kernel.symbol("vmcoreinfo_size"))
    if pointer == 0 or size == 0:
        raise NotFoundError("the kernel has not written VMCOREINFO yet")
    if size > _MAX_VMCOREINFO:
        raise GuestDataError(f"VMCOREINFO cannot take {size} bytes")
    return kernel.read(pointer, size)


def boot_state(kernel: Kernel) -> str:
    """As :attr:`Identity.state`; "unknown" where the kernel does not tell."""
    with contextlib.suppress(KvmgdbError):
        if kernel.u32(kernel.symbol("panic_cpu")) != _NO_CPU:
            return "panicked"
    try:
        states = kernel.types.enumeration("system_states")
        value = kernel.u32(kernel.symbol("system_state"))
    except KvmgdbError:
        return "unknown"
    name = next((name for name, number in states.items() if number == value), "")
    return {
        "SYSTEM_BOOTING": "booting",
        "SYSTEM_SCHEDULING": "booting",
        "SYSTEM_FREEING_INITMEM": "booting",
        "SYSTEM_RUNNING": "running",
        "SYSTEM_HALT": "shutting down",
        "SYSTEM_POWER_OFF": "shutting down",
        "SYSTEM_RESTART": "shutting down",
        "SYSTEM_SUSPEND": "suspended",
    }.get(name, "unknown")


def _disagreements(
    kernel: Kernel, vmcoreinfo: dict[str, str], release: str | None, build_id: str | None
) -> list[str]:
    found = []
    for key, value in vmcoreinfo.items():
        if not (key.startswith("SYMBOL(") and key.endswith(")")):
            continue
        name = key[7:-1]
        addresses = [symbol.address for symbol in kernel.symbols.named(name)]
        with contextlib.suppress(ValueError):
            address = int(value, 16)
            # A few name an array by a pointer to it, and give what that points to.
            inside = kernel.base <= address < kernel.location.end
            if inside and addresses and address not in addresses:
                found.append(f"VMCOREINFO has {name} at {value}, kallsyms at {addresses[0]:x}")
    expected = {
        "KERNELOFFSET": f"{kernel.base - LINKED_AT:x}",
        "OSRELEASE": release,
        "BUILD-ID": build_id,
    }
    for key, fact in expected.items():
        told = vmcoreinfo.get(key)
        if told is not None and fact is not None and told != fact:
            found.append(f"VMCOREINFO has {key}={told}, the kernel itself {fact}")
    return found
