"""QEMU processes on this host: which there are, and how to reach their monitor.

Everything comes from ``/proc``. A QEMU may live in another mount or network
namespace (a container): its socket paths are taken relative to its own root and
working directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvmgdb.errors import KvmgdbError, TargetNotFoundError
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.holders import stopped_process
from kvmgdb.machine.qmp import Qmp
from kvmgdb.machine.sockets import listening_sockets, seen_from_here

_BINARY = re.compile(r"qemu(-system-(x86_64|i386|amd64))?|qemu-kvm|kvm")
_TICKS = os.sysconf("SC_CLK_TCK")
# A process may have any words for arguments.
_NUMBER = r"[0-9]{1,18}"


@dataclass(frozen=True)
class QemuProcess:
    """A running QEMU. ``arguments`` is its command line without the program;
    ``uptime`` is in seconds, ``memory`` (guest RAM as asked for) in bytes."""

    pid: int
    arguments: tuple[str, ...]
    uptime: float
    options: dict[str, list[str]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The ``-name``, without its properties; "" where there is none."""
        for value in reversed(self.options.get("name", [])):
            for item in _split(value):
                key, separator, text = item.partition("=")
                if key == "guest" or not separator:
                    return text if separator else item
        return ""

    @property
    def vcpus(self) -> int:
        for value in reversed(self.options.get("smp", [])):
            return _vcpus(value)
        return 1

    @property
    def memory(self) -> int:
        for value in reversed(self.options.get("m", [])):
            size = next(
                (
                    item.removeprefix("size=")
                    for item in _split(value)
                    if item.startswith("size=") or "=" not in item
                ),
                "128",
            )
            return _size(size)
        return 128 << 20

    @property
    def accelerator(self) -> str:
        """ "kvm", "tcg" ..., as the command line asks for it."""
        if "enable-kvm" in self.options:
            return "kvm"
        for value in self.options.get("accel", []) + self.options.get("machine", []):
            match = re.search(r"(?:^|accel=)(kvm|tcg|xen)\b", value)
            if match:
                return match[1]
        return "tcg"


def qemu_processes() -> Iterator[QemuProcess]:
    """All QEMU system emulators for x86 that this user can see."""
    for entry in sorted(Path("/proc").iterdir(), key=lambda path: path.name):
        if entry.name.isdigit():
            process = read_qemu_process(int(entry.name))
            if process is not None:
                yield process


def read_qemu_process(pid: int) -> QemuProcess | None:
    """The QEMU with this PID, or None where the process is no QEMU or gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    words = raw.decode(errors="replace").split("\0")[:-1]
    if not words or fields[0] in "ZX" or not _is_qemu(pid, words[0]):
        return None
    started = int(fields[19]) / _TICKS
    arguments = tuple(words[1:])
    return QemuProcess(pid, arguments, max(0.0, uptime - started), _parse_options(arguments))


def _is_qemu(pid: int, program: str) -> bool:
    try:
        executable = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        executable = program
    return any(_BINARY.fullmatch(Path(name).name) for name in (executable, program))


# ---- the command line -----------------------------------------------------

# Options of QEMU without a value whose next word must not be taken for one.
_FLAGS = frozenset({"enable-kvm", "nographic", "nodefaults", "S", "s", "snapshot", "daemonize"})


def _parse_options(arguments: tuple[str, ...]) -> dict[str, list[str]]:
    options: dict[str, list[str]] = {}
    index = 0
    while index < len(arguments):
        word = arguments[index]
        index += 1
        if not word.startswith("-"):
            continue
        option = word.lstrip("-")
        value = ""
        if option not in _FLAGS and index < len(arguments) and not arguments[index].startswith("-"):
            value = arguments[index]
            index += 1
        options.setdefault(option, []).append(value)
    return options


def _split(value: str) -> list[str]:
    """Items of a QEMU option; a doubled comma stands for one."""
    return [item.replace("\0", ",") for item in value.replace(",,", "\0").split(",")]


def _vcpus(value: str) -> int:
    counts = {"sockets": 1, "dies": 1, "cores": 1, "threads": 1}
    for item in _split(value):
        key, separator, text = item.partition("=")
        number = text if separator else item
        if not re.fullmatch(_NUMBER, number):
            continue
        if not separator or key == "cpus":
            return int(number)
        if key in counts:
            counts[key] = int(number)
    return counts["sockets"] * counts["dies"] * counts["cores"] * counts["threads"]


def _size(text: str) -> int:
    """A memory size of QEMU's ``-m``: mebibytes unless a suffix says else."""
    match = re.fullmatch(rf"({_NUMBER}(?:\.{_NUMBER})?)([KMGTkmgt]?)[Bb]?", text)
    if not match:
        return 0
    shift = {"k": 10, "": 20, "m": 20, "g": 30, "t": 40}[match[2].lower()]
    return int(float(match[1]) * (1 << shift))


# ---- the monitor ----------------------------------------------------------


def connect_qmp(process: QemuProcess) -> Qmp:
    """A QMP connection to a QEMU. Raises TargetNotFoundError where it listens on
    none, and otherwise the error of the last socket that was tried."""
    sockets = listening_sockets(process.pid)
    designated = _qmp_sockets(process, sockets)
    candidates = designated or _unnamed_sockets(process, sockets)
    failure: KvmgdbError | None = None
    for address in candidates:
        try:
            return Qmp(address)
        except KvmgdbError as error:
            failure = error
    if failure is not None and (stopped := stopped_process(process.pid, "QEMU with")):
        raise stopped
    if failure is not None and designated:
        raise failure
    raise TargetNotFoundError(
        f"QEMU with PID {process.pid} listens on no QMP socket",
        "start QEMU with -qmp unix:PATH,server=on,wait=off (its human monitor can open one: "
        "chardev-add socket,...), or with -gdb and use rsp:HOST:PORT",
    )


def _qmp_sockets(process: QemuProcess, sockets: dict[str, SocketAddress]) -> list[SocketAddress]:
    """The listening sockets that the command line makes QMP monitors."""
    options = process.options
    specifications = options.get("qmp", []) + options.get("qmp-pretty", [])
    monitors = {
        item.partition("=")[2] if "=" in item else item
        for value in options.get("mon", [])
        if "mode=control" in _split(value)
        for item in _split(value)
        if item.startswith("chardev=") or "=" not in item
    }
    specifications += [
        value
        for value in options.get("chardev", [])
        if any(item.removeprefix("id=") in monitors for item in _split(value)[1:])
    ]
    return [
        address
        for specification in specifications
        for inode, address in sockets.items()
        if _names_socket(process.pid, specification, inode, address)
    ]


def _names_socket(pid: int, specification: str, inode: str, address: SocketAddress) -> bool:
    """Whether ``unix:PATH,...``, ``tcp:HOST:PORT,...`` or ``socket,path=...``
    (also ``port=``, ``fd=``) means this listening socket."""
    items = _split(specification)
    values = dict(item.split("=", 1) for item in items if "=" in item)
    head = items[0]
    if address.path:
        path = values.get("path") or (head[5:] if head.startswith("unix:") else "")
        if values.get("abstract") == "on":
            path = "@" + path
        if path and path not in ("@",):
            # QEMU listens under the path as it was written.
            return address.path in (path, seen_from_here(pid, path))
    else:
        port = values.get("port") or (head.rpartition(":")[2] if head.startswith("tcp:") else "")
        if port:
            return port == str(address.port)
    if values.get("fd", "").isdigit():
        try:
            return os.readlink(f"/proc/{pid}/fd/{values['fd']}") == f"socket:[{inode}]"
        except OSError:
            return False
    return False


def _unnamed_sockets(
    process: QemuProcess, sockets: dict[str, SocketAddress]
) -> list[SocketAddress]:
    """Listening Unix sockets that no option names: opened later, or by a
    configuration file. A socket that belongs to a serial port or a display is
    not probed: connecting would disturb the guest."""
    line = "\0".join(process.arguments)
    return [
        address
        for address in sockets.values()
        if address.path and Path(address.path).name not in line
    ]


def gdb_stub_address(process: QemuProcess) -> SocketAddress | None:
    """Where the QEMU listens for GDB by its command line (``-s``, ``-gdb``)."""
    if "s" in process.options:
        return SocketAddress(host="127.0.0.1", port=1234)
    for value in reversed(process.options.get("gdb", [])):
        return parse_chardev_address(value, process.pid)
    return None


def busy_stub_address(process: QemuProcess) -> SocketAddress | None:
    """The GDB stub that the command line opens, if somebody is connected to it."""
    address = gdb_stub_address(process)
    if address is None:
        return None
    connections = listening_sockets(process.pid, connected=True).values()
    busy = any(
        own.path == address.path if address.path else not own.path and own.port == address.port
        for own in connections
    )
    return address if busy else None


def has_client_of_later_socket(process: QemuProcess) -> bool:
    """Whether somebody is connected to a socket that no option of the command line
    names: QEMU's human monitor has opened it (``gdbserver``, ``chardev-add``)."""
    line = "\0".join(process.arguments)
    listening = [
        address
        for address in listening_sockets(process.pid).values()
        if not _is_named(address, line)
    ]
    if not listening:
        return False
    connections = listening_sockets(process.pid, connected=True).values()
    return any(
        (own.path, own.port) == (address.path, address.port)
        for own in connections
        for address in listening
    )


def _is_named(address: SocketAddress, line: str) -> bool:
    return (Path(address.path).name if address.path else str(address.port)) in line


def parse_chardev_address(text: str, pid: int | None = None) -> SocketAddress | None:
    """``tcp:HOST:PORT,...`` or ``unix:PATH,...`` as QEMU writes a socket, also
    with ``disconnected:`` before it; None for anything else."""
    specification = text.removeprefix("disconnected:")
    head = _split(specification)[0].partition(" <-> ")[0]
    if head.startswith("unix:"):
        path = head.removeprefix("unix:")
        return SocketAddress(path=path if pid is None else seen_from_here(pid, path))
    match = re.fullmatch(r"(?:tcp|telnet):(\[.*\]|[^:]*):(\d+)", head)
    if not match:
        return None
    host = match[1].strip("[]")
    if host in ("", "0.0.0.0"):
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return SocketAddress(host=host, port=int(match[2]))
