"""``monitor ...``: commands that GDB passes to us as text.

What we do not know under ``info``, and the commands of QEMU's monitor that read
and translate addresses, go to the VMM's own monitor, so that scripts written for
QEMU's stub (``monitor info mem``, ``monitor gva2gpa ADDRESS``) keep working.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvmgdb.errors import KvmgdbError, MemoryFault, UnsupportedError, UsageError
from kvmgdb.machine.native import Translation

if TYPE_CHECKING:
    from kvmgdb.rsp.session import Session

_MODES = {
    0: "no paging",
    2: "32-bit paging",
    3: "PAE paging",
    4: "4-level paging",
    5: "5-level paging",
}


# Those of QEMU's that pwndbg, GEF and gdb-pt-dump use beside `info`.
OF_QEMU = frozenset(
    ["gpa2hva", "gpa2hpa", "gva2gpa", "x", "xp", "p", "print", "chardev-add", "chardev-remove"]
)


@dataclass(frozen=True)
class Command:
    """A monitor command; ``usage`` shows its arguments, ``summary`` is one line."""

    run: Callable[[Session, list[str]], str]
    usage: str
    summary: str


def run_command(session: Session, line: str) -> str:
    """Runs a line and returns the text to show. Errors are text, too: GDB
    shows an error reply to ``monitor`` as a protocol error only."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        return f"kvmgdb: {line!r}: {error}\n"
    if not words:
        words = ["help"]
    command = COMMANDS.get(words[0])
    if command is None and words[0].partition("/")[0] not in OF_QEMU:
        # Scripts know QEMU's words for it.
        return (
            f"kvmgdb: unknown command: {words[0]!r}; `monitor help` lists them, "
            "`monitor vmm LINE` passes a line to the VMM's own monitor\n"
        )
    try:
        return command.run(session, words[1:]) if command else _vmm(session, [line])
    except KvmgdbError as error:
        remedy = f" ({error.remedy})" if error.remedy else ""
        return f"kvmgdb: {error}{remedy}\n"


def _help(session: Session, arguments: list[str]) -> str:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:<{width}}  {command.summary}" for command in COMMANDS.values()]
    return "\n".join(lines) + "\n"


def _info(session: Session, arguments: list[str]) -> str:
    topics = {"": _info_machine, "memory": _info_memory, "vcpus": _info_vcpus}
    topic = topics.get(" ".join(arguments))
    if topic is not None:
        return topic(session)
    return _vmm(session, ["info", *arguments])


def _info_machine(session: Session) -> str:
    info = session.machine.info()
    rows = [
        ("machine", info.name or "(no name)"),
        ("backend", info.backend),
        ("pid", str(info.pid) if info.pid is not None else "unknown"),
        ("accelerator", info.accelerator),
        ("vCPUs", str(info.vcpus)),
        ("state", info.state),
        *info.facts.items(),
        ("debuggers", str(len(session.debuggee.debuggers))),
    ]
    lines = [f"{name:<12} {value}" for name, value in rows]
    session.debuggee.guest.find(session.machine)
    lines += session.debuggee.guest.describe()
    lines += [f"note: {note}" for note in info.notes]
    return "\n".join(lines) + "\n"


def _info_memory(session: Session) -> str:
    info = session.machine.info()
    lines = [
        f"{region.gpa:#014x}-{region.gpa + region.size - 1:#014x} {_size(region.size):>10}  "
        f"{'rom' if region.read_only else 'ram'}  by {region.source:<8} {region.name}"
        for region in info.regions
    ]
    lines += [f"note: {note}" for note in info.notes]
    return "\n".join(lines or ["the memory layout is not known"]) + "\n"


def _info_vcpus(session: Session) -> str:
    lines = []
    for vcpu in session.machine.vcpus:
        mark = "*" if vcpu.index == session.register_vcpu.index else " "
        paging = vcpu.paging()
        mode = _MODES[paging.mode] if paging is not None else "paging unknown"
        lines.append(f"{mark} vCPU {vcpu.index}  {vcpu.state or 'stopped':<8} {mode}")
    return "\n".join(lines) + "\n"


def _size(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} B"


def _translate(session: Session, arguments: list[str]) -> str:
    if len(arguments) not in (1, 2):
        raise UsageError("usage: monitor translate ADDRESS [VCPU]")
    try:
        gva = int(arguments[0], 0)
    except ValueError:
        raise UsageError(f"{arguments[0]!r} is not an address") from None
    if not 0 <= gva < 1 << 64:
        raise UsageError(f"{arguments[0]!r} is not a 64-bit address")
    vcpu = session.register_vcpu.index
    if len(arguments) == 2:
        count = len(session.machine.vcpus)
        if arguments[1] not in map(str, range(count)):
            raise UsageError(f"{arguments[1]!r} is not a vCPU: they are 0 to {count - 1}")
        vcpu = int(arguments[1])
    try:
        translation = session.machine.translate(vcpu, gva)
    except MemoryFault as fault:
        return f"{gva:#x} is not mapped on vCPU {vcpu}: {fault}\n"
    return f"vCPU {vcpu}: " + _describe(gva, translation)


def _describe(gva: int, translation: Translation) -> str:
    access = "r" + ("w" if translation.writable else "-")
    access += "x" if translation.executable else "-"
    lines = [
        f"GVA {gva:#x} -> GPA {translation.gpa:#x}",
        f"{_MODES[translation.mode]}, page of {_size(translation.page_size)}, {access}, "
        f"{'user' if translation.user else 'supervisor'}",
    ]
    for depth, (where, entry) in enumerate(translation.entries):
        level = translation.mode - depth
        lines.append(f"  level {level}  entry at GPA {where:#014x} = {entry:#018x}")
    return "\n".join(lines) + "\n"


def _tasks(session: Session, arguments: list[str]) -> str:
    if arguments == ["off"]:
        session.tasks.hide()
        return "the guest's tasks are no threads any more\n"
    if arguments != ["on"]:
        raise UsageError("usage: monitor tasks on|off")
    return f"{session.tasks.show()} sleeping tasks are threads: `info threads` shows them\n"


def _debuggers(session: Session, arguments: list[str]) -> str:
    lines = []
    for debugger in session.debuggee.debuggers:
        state = "holds the guest" if session.debuggee.holds(debugger) else "lets the guest run"
        mark = "*" if debugger is session else " "
        lines.append(f"{mark} {debugger.name}  {state}")
    return "\n".join(lines) + "\n"


def _disconnect(session: Session, arguments: list[str]) -> str:
    if len(arguments) != 1:
        raise UsageError("usage: monitor disconnect NUMBER (`monitor debuggers` lists them)")
    for debugger in session.debuggee.debuggers:
        if str(debugger.number) == arguments[0] and debugger is not session:
            debugger.close()
            return f"{debugger.name} is disconnected\n"
    raise UsageError(f"there is no other debugger {arguments[0]}")


def _reset(session: Session, arguments: list[str]) -> str:
    resetting = session.machine.resetting
    if resetting is None:
        raise UnsupportedError("this target cannot be reset")
    session.require_stopped()
    session.debuggee.reset(resetting)
    return (
        "the machine is reset and stands at its first instruction; "
        "`maintenance flush register-cache` makes GDB read its registers again\n"
    )


def _quit(session: Session, arguments: list[str]) -> str:
    session.debuggee.request_quit()
    if session.debuggee.end_machine is not None:
        return "kvmgdb ends, and the virtual machine with it\n"
    return "kvmgdb ends; the virtual machine goes on\n"


def _vmm(session: Session, arguments: list[str]) -> str:
    monitor = session.machine.monitor
    if monitor is None:
        raise UnsupportedError("unknown command: this target has no monitor of its own")
    text = monitor.command(" ".join(arguments), session.register_vcpu.index)
    return text if text.endswith("\n") or not text else text + "\n"


COMMANDS: dict[str, Command] = {
    "help": Command(_help, "help", "this list"),
    "info": Command(
        _info,
        "info [memory|vcpus|TOPIC]",
        "the machine; its memory layout; its vCPUs; TOPIC: what the VMM's monitor knows",
    ),
    "translate": Command(
        _translate,
        "translate ADDRESS [VCPU]",
        "walk a vCPU's page tables: without VCPU, of the one GDB asked about last",
    ),
    "tasks": Command(_tasks, "tasks on|off", "show the guest's sleeping tasks as threads"),
    "debuggers": Command(_debuggers, "debuggers", "who is connected, and who holds the guest"),
    "disconnect": Command(_disconnect, "disconnect NUMBER", "drop another debugger"),
    "reset": Command(_reset, "reset", "reset the machine"),
    "vmm": Command(_vmm, "vmm LINE", "pass a line to the VMM's own monitor"),
    "quit": Command(_quit, "quit", "end kvmgdb; a machine that it did not start goes on"),
}
