"""What the demo shows in GDB, and how it knows that it was really shown.

Each stop of the tour is a few GDB commands, as a user would type them, and a
check of what GDB answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvmgdb.demo.guest import LinuxGuest

# The vector of the local APIC's timer (arch/x86/include/asm/irq_vectors.h): the
# guest's kernel takes it hundreds of times a second under the workers' load.
TIMER_VECTOR = 0xEC

# A check returns what is wrong with GDB's answer, or an empty string.
Check = Callable[[str], str]


@dataclass(frozen=True)
class Stop:
    """One stop of the tour; ``proves`` says what holds when ``check`` finds nothing."""

    title: str
    commands: Sequence[str]
    check: Check
    proves: str


@dataclass(frozen=True)
class Facts:
    """Addresses (GVA) as the guest's own /proc/kallsyms gives them, and its version:
    what GDB finds by itself is compared with them."""

    read: int
    interrupt: int
    version: str


def ask_guest(guest: LinuxGuest) -> Facts:
    """Asks the guest, while it runs, where its kernel is."""
    return Facts(
        read=guest.symbol("vfs_read"),
        interrupt=guest.symbol("hrtimer_interrupt"),
        version=guest.read_file("/proc/version").decode().strip(),
    )


def tour(facts: Facts) -> list[Stop]:
    """The tour of a guest with these facts; GDB is connected when it begins."""
    return [
        Stop(
            "The vCPUs are GDB's threads, named after what they run",
            ["info threads"],
            _vcpus,
            "two vCPUs, each with its task",
        ),
        Stop(
            "A breakpoint by name: GDB was given no file",
            ["break vfs_read", "continue", f"print $pc == {facts.read:#x}", "backtrace"],
            _backtrace,
            "it hit where /proc/kallsyms has vfs_read; the backtrace ends in user mode",
        ),
        Stop(
            "Types and variables of the guest's kernel",
            [
                "ptype struct list_head",
                "print sizeof(struct task_struct)",
                "print init_task.comm",
                "print/x init_task.tasks",
            ],
            _types,
            "from the kernel's BTF, in guest memory",
        ),
        Stop(
            "General and control registers",
            [
                "info registers rip rsp rbp rax rbx rcx rdx rsi rdi eflags cs",
                "info registers cr0 cr2 cr3 cr4 efer fs_base gs_base k_gs_base",
                "info registers idtr_base",
            ],
            _registers,
            "all registers have values; paging and long mode are on",
        ),
        Stop(
            "The instructions at the program counter",
            ["x/5i $pc"],
            _disassembly,
            "five instructions were read from the guest",
        ),
        Stop(
            "The interrupt descriptor table: where does the timer interrupt go?",
            [
                f"set $gate = (unsigned long) $idtr_base + 16 * {TIMER_VECTOR:#x}",
                "x/2gx $gate",
                "set $entry = ((unsigned long) *(unsigned int *) ($gate + 8) << 32)"
                " | (*(unsigned int *) ($gate + 4) & 0xffff0000)"
                " | *(unsigned short *) $gate",
                "info symbol $entry",
            ],
            lambda text: "" if "apic_timer_interrupt" in text else "that is not the timer's",
            "the gate leads to the kernel's timer interrupt",
        ),
        Stop(
            "A software breakpoint there, and on to it",
            ["delete", "break *$entry", "continue", "print $pc == $entry"],
            _breakpoint,
            "the guest stopped at the interrupt's entry",
        ),
        Stop(
            "One instruction",
            ["x/2i $pc", "stepi", "print/x $pc"],
            _step,
            "the vCPU stands on the next instruction",
        ),
        Stop(
            "A hardware breakpoint, deeper in the kernel",
            [
                "delete",
                "hbreak hrtimer_interrupt",
                "continue",
                f"print $pc == {facts.interrupt:#x}",
            ],
            _breakpoint,
            "the guest stopped in its timer code",
        ),
        Stop(
            "Guest memory: the kernel's banner",
            ["set print elements 400", "x/s &linux_banner"],
            lambda text: "" if facts.version in text else "that is not what /proc/version says",
            "the same text as the guest's own /proc/version",
        ),
        Stop(
            "A watchpoint on a kernel variable",
            ["delete", "watch *(unsigned long *) &jiffies_64", "continue", "backtrace 3"],
            _watchpoint,
            "the guest stopped because the variable had changed",
        ),
        Stop(
            "And off again",
            ["delete", "detach"],
            lambda text: "" if "detached]" in text else "GDB did not detach",
            "GDB has let go of the guest",
        ),
    ]


def _vcpus(text: str) -> str:
    names = re.findall(r'"vCPU (\d+) \[.+ pid \d+\]"', text)
    return "" if names == ["0", "1"] else f"expected vCPU 0 and vCPU 1, and saw {names}"


def _backtrace(text: str) -> str:
    frames = re.findall(
        r"^#\d+ .*?(?:in (\w+|\?\?) |<(signal handler) called>)", text, re.MULTILINE
    )
    names = [function or signal for function, signal in frames]
    if names[:2] != ["vfs_read", "ksys_read"] or names[-2:] != ["signal handler", "??"]:
        return f"the frames are {', '.join(names) or 'not there'}"
    return _breakpoint(text)


def _types(text: str) -> str:
    missing = [
        wanted
        for wanted in ("struct list_head *next;", '"swapper/0', "next = 0xffff")
        if wanted not in text
    ]
    return f"{missing[0]!r} is missing" if missing else ""


def _registers(text: str) -> str:
    values = dict(re.findall(r"^(\w+) +(0x[0-9a-f]+)\s", text, re.MULTILINE))
    wanted = (
        "rip rsp rbp rax rbx rcx rdx rsi rdi eflags cs"
        " cr0 cr2 cr3 cr4 efer fs_base gs_base k_gs_base idtr_base"
    )
    missing = [name for name in wanted.split() if name not in values]
    if missing:
        return f"no value for {', '.join(missing)}"
    if not int(values["cr0"], 16) >> 31 & 1:
        return "paging is off in cr0"
    return "" if int(values["efer"], 16) >> 10 & 1 else "long mode is off in efer"


def _disassembly(text: str) -> str:
    count = len(re.findall(r"^(?:=>|  ) 0x[0-9a-f]+.*:\t\w", text, re.MULTILINE))
    if count != 5:
        return f"{count} instructions were shown, not 5"
    return "" if "=> " in text else "the vCPU stands at none of them"


def _value(text: str) -> int:
    """The last value that ``print/x`` showed; 0 where there is none."""
    values = re.findall(r"^\$\d+ = (0x[0-9a-f]+)$", text, re.MULTILINE)
    return int(values[-1], 16) if values else 0


def _breakpoint(text: str) -> str:
    if not re.search(r"hit (?:Hardware )?[Bb]reakpoint \d+", text):
        return "the breakpoint was not hit"
    return "" if re.search(r"^\$\d+ = 1$", text, re.MULTILINE) else "it stopped elsewhere"


def _step(text: str) -> str:
    addresses = re.findall(r"^(?:=>|  ) (0x[0-9a-f]+)", text, re.MULTILINE)
    if len(addresses) < 2:
        return "the next instruction was not shown"
    return "" if _value(text) == int(addresses[1], 16) else "the vCPU stands elsewhere"


def _watchpoint(text: str) -> str:
    old = re.search(r"^Old value = (\d+)$", text, re.MULTILINE)
    new = re.search(r"^New value = (\d+)$", text, re.MULTILINE)
    if "ardware watchpoint" not in text or old is None or new is None:
        return "the watchpoint was not hit"
    return "" if int(new[1]) > int(old[1]) else "the variable did not grow"
