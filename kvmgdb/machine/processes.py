"""The virtual machines on this host, whoever runs them.

A process is a VM when it holds a KVM machine (``anon_inode:kvm-vm`` among its
descriptors) or is a QEMU system emulator. Without the right to look at a
process's descriptors only QEMU can be told, by its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvmgdb.errors import TargetNotFoundError
from kvmgdb.machine.qemu_process import QemuProcess, read_qemu_process

_KVM_VM = "anon_inode:kvm-vm"
_KVM_VCPU = "anon_inode:kvm-vcpu"
_TICKS = os.sysconf("SC_CLK_TCK")
# Below this a mapping of a VMM is its own memory rather than a guest's.
_MIN_RAM = 16 << 20
# How VMMs are told the name of a machine: crosvm and kvmtool, Firecracker.
_NAME_OPTIONS = ("--name", "--id")


@dataclass(frozen=True)
class VmProcess:
    """A virtual machine's process. ``uptime`` is in seconds, ``memory`` (guest
    RAM) in bytes; None is what this user may not see. ``missing`` says what that
    is, or is empty."""

    pid: int
    vmm: str
    name: str
    vcpus: int | None
    memory: int | None
    accelerator: str
    uptime: float
    qemu: QemuProcess | None
    missing: str = ""

    @property
    def uses_kvm(self) -> bool:
        return self.accelerator == "kvm"


def vm_processes() -> Iterator[VmProcess]:
    """All virtual machines that this user can see, by PID."""
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        process = read_vm_process(pid)
        if process is not None:
            yield process


def read_vm_process(pid: int) -> VmProcess | None:
    """The virtual machine with this PID, or None where it is none or gone."""
    qemu = read_qemu_process(pid)
    try:
        links = _descriptors(pid)
    except PermissionError:
        if qemu is None:
            return None
        missing = "its owner or root can attach to it"
        return VmProcess(
            pid,
            "QEMU",
            qemu.name,
            qemu.vcpus,
            qemu.memory,
            qemu.accelerator,
            qemu.uptime,
            qemu,
            missing,
        )
    except OSError:
        return None
    uses_kvm = _KVM_VM in links
    if qemu is not None:
        accelerator = "kvm" if uses_kvm else "tcg"
        return VmProcess(
            pid, "QEMU", qemu.name, qemu.vcpus, qemu.memory, accelerator, qemu.uptime, qemu
        )
    if not uses_kvm:
        return None
    return _other_vmm(pid, links)


def find_vm(name: str) -> VmProcess:
    """The virtual machine of this name. Raises TargetNotFoundError where there
    is none, or more than one."""
    found = [process for process in vm_processes() if process.name == name]
    if not found:
        raise TargetNotFoundError(f"no virtual machine has the name {name!r}")
    if len(found) > 1:
        pids = ", ".join(str(process.pid) for process in found)
        raise TargetNotFoundError(
            f"{len(found)} virtual machines have the name {name!r} (PIDs {pids})", "name the PID"
        )
    return found[0]


def vcpu_ids(pid: int) -> set[int]:
    """The vCPUs that a process has, as it numbered them; none where this user may
    not look or it is gone."""
    try:
        links = _descriptors(pid)
    except OSError:
        return set()
    return {int(link.rpartition(":")[2]) for link in links if link.startswith(f"{_KVM_VCPU}:")}


def _other_vmm(pid: int, links: list[str]) -> VmProcess | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        vmm = Path(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")).name
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        now = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return None
    vcpus = sum(1 for link in links if link.startswith(_KVM_VCPU))
    return VmProcess(
        pid,
        vmm,
        _name(words),
        vcpus,
        _mapped_ram(pid),
        "kvm",
        max(0.0, now - int(fields[19]) / _TICKS),
        None,
    )


def _name(words: list[str]) -> str:
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in _NAME_OPTIONS:
            return value if equals else "".join(words[index + 1 : index + 2])
    return ""


def _descriptors(pid: int) -> list[str]:
    """What a process has open. Raises PermissionError, or another OSError where
    it is gone."""
    directory = f"/proc/{pid}/fd"
    links = []
    for entry in os.listdir(directory):
        try:
            links.append(os.readlink(f"{directory}/{entry}"))
        except FileNotFoundError:
            continue
    return links


def _mapped_ram(pid: int) -> int | None:
    """Bytes of the large writable mappings without a file: a VMM's guest RAM."""
    total = 0
    try:
        text = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return None
    for match in re.finditer(r"^([0-9a-f]+)-([0-9a-f]+) rw\S+ \S+ \S+ \d+ *(.*)$", text, re.M):
        size = int(match[2], 16) - int(match[1], 16)
        if size >= _MIN_RAM and not match[3].startswith("["):
            total += size
    return total
