"""What a server knows of the guest's kernel, and the files it makes of it.

The kernel is looked for when a debugger first asks for its symbols. At stops it
is looked after: a guest that was still booting has one later, and after a
reboot it has another.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from kvmgdb.errors import GuestDataError, KvmgdbError, UnsupportedError
from kvmgdb.linux.identity import LINKED_AT, boot_state, identify
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.locate import is_mapped
from kvmgdb.linux.modules import Module, list_modules
from kvmgdb.linux.tasks import cpu_of_vcpu, current_task
from kvmgdb.machine.interface import Machine, Vcpu
from kvmgdb.machine.registers import Group
from kvmgdb.rsp.virtual_files import VirtualFiles
from kvmgdb.symbols import read_module, read_vmlinux
from kvmgdb.symbols.areas import module_areas

# Looking after the kernel at stops takes at most this share of the time.
_LOOKS_SHARE = 0.05
_LOOK_INTERVAL = 0.25
# In seconds, after so many that found nothing.
_SELDOM_INTERVAL = 3.0
_OFTEN = 60
_BOOTING = "booting"
_MAX_LIBRARIES = 4096
GS_BASES = frozenset({Group.SEGMENT, Group.KERNEL_GS})


def printable(text: str) -> str:
    """A name that the guest gave, fit for a terminal and for XML."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)


@dataclass(frozen=True)
class Library:
    """A kernel module as GDB is told of it: the path of its symbols, and the GVA
    of the first segment there."""

    path: str
    base: int


class Guest:
    """The kernel of the machine that a server serves. The files that were made of
    it outlive the attachment to the machine: the next debugger finds them."""

    def __init__(self) -> None:
        self.files = VirtualFiles()
        self.kernel: Kernel | None = None
        self.why_not = "nobody has asked for its symbols yet"
        self.executable: str | None = None
        self.libraries: tuple[Library, ...] = ()
        self.libraries_version = 0
        self.facts: dict[str, str] = {}
        self._freed: set[int] = set()
        self._booting = False
        self._looked = False
        self._next_look = 0.0
        self._vain_looks = 0

    def forget_machine(self) -> None:
        """The machine is closed, and with it the way to the guest's memory."""
        self.kernel = None
        self.executable = None
        self.why_not = "kvmgdb is not attached"
        self._looked = False
        self._vain_looks = 0
        self._freed.clear()

    def forget_kernel(self) -> None:
        """The machine was reset: what runs next is another kernel, or none."""
        self._vain_looks = 0
        self._lose("the machine was reset")

    def find(self, machine: Machine) -> Kernel | None:
        """The kernel; it is looked for once after each attachment."""
        if not self._looked:
            self._look(machine)
        return self.kernel

    def look_again(self, machine: Machine, modules: bool) -> None:
        """At a stop: is the kernel still that one, or is there one now? And, with
        ``modules``, which are there? Not more often than is worth it."""
        if not self._looked or time.monotonic() < self._next_look:
            return
        self._look(machine)
        if modules:
            self.read_libraries()

    @property
    def is_due(self) -> bool:
        """Whether it is worth stopping a guest that runs, to see whether it has a
        kernel by now: often while it may be booting, seldom later."""
        return self._looked and self.kernel is None and time.monotonic() >= self._next_look

    def _look(self, machine: Machine) -> None:
        begin = time.monotonic()
        self._look_now(machine)
        self._vain_looks = 0 if self.kernel is not None else self._vain_looks + 1
        often = self._vain_looks <= _OFTEN
        spent = time.monotonic() - begin
        self._next_look = begin + max(
            _LOOK_INTERVAL if often else _SELDOM_INTERVAL, spent / _LOOKS_SHARE
        )

    def _look_now(self, machine: Machine) -> None:
        memory = machine.memory
        try:
            if memory is None:
                raise UnsupportedError(
                    "guest-physical memory cannot be reached through this target"
                )
            pagings = [paging for vcpu in machine.vcpus if (paging := vcpu.paging()) is not None]
            self._looked = True
            if (
                self.kernel is not None
                and is_mapped(memory, self.kernel.location, pagings)
                # Some of what is read while it boots is not final.
                and (not self._booting or boot_state(self.kernel) == _BOOTING)
            ):
                return
            self._adopt(Kernel.find(memory, pagings, search=False))
        except KvmgdbError as error:
            self._lose(str(error))

    def _lose(self, why: str) -> None:
        self.why_not = why
        self.kernel = None
        self.executable = None
        self._set_libraries(())

    def _adopt(self, kernel: Kernel) -> None:
        identity = identify(kernel)
        key = (kernel.base, kernel.location.extents[0].gpa, identity.build_id, identity.banner)
        stem = f"vmlinux-{identity.release}" if identity.release else "vmlinux"
        self.kernel = kernel
        self.why_not = ""
        self._booting = identity.state == _BOOTING
        self.executable = self.files.name(stem, "", key, lambda: read_vmlinux(kernel).build)
        self.facts = {
            "kernel": f"Linux {identity.release or '(release unknown)'} at {kernel.base:#x}",
            "build ID": identity.build_id or "none",
        }
        self.read_libraries()

    # ---- tasks

    def current_task(self, machine: Machine, vcpu: Vcpu) -> str:
        """What a vCPU executes, as ``comm pid N``; an empty string where it cannot
        be told."""
        kernel = self.find(machine)
        if kernel is None:
            return ""
        try:
            registers = vcpu.read_registers(GS_BASES)
            cpu = cpu_of_vcpu(kernel, registers.get("gs_base"), registers.get("k_gs_base"))
            if cpu is None:
                return ""
            task = current_task(kernel, cpu)
            return f"{printable(task.member('comm').string())} pid {task.member('pid').integer()}"
        except KvmgdbError:
            return ""

    # ---- modules

    def free(self, module: int) -> None:
        """The kernel is about to free a module (GVA of its struct module)."""
        self._freed.add(module)

    def add(self, module: int) -> None:
        """The kernel is about to start a module."""
        self._freed.discard(module)

    def read_libraries(self) -> None:
        """Reads the list of modules; where it cannot be read there are none."""
        kernel = self.kernel
        if kernel is None:
            return
        try:
            modules = list(list_modules(kernel))[:_MAX_LIBRARIES]
        except KvmgdbError:
            modules = []
        self._freed.intersection_update(module.address for module in modules)
        found = []
        for module in modules:
            if module.address not in self._freed:
                try:
                    found.append(self._library(kernel, module))
                except KvmgdbError:
                    continue  # one that is damaged does not hide the others
        self._set_libraries(found)

    def _library(self, kernel: Kernel, module: Module) -> Library:
        if not module.areas:
            raise GuestDataError(f"the module {module.name} lies nowhere")
        # What it was started by goes once it has run; it stays the same module.
        lasting = tuple(area for area in module.areas if not area.kind.startswith("init"))
        key = (self.executable, module.name, module.address, lasting)
        path = self.files.name(module.name, ".ko", key, lambda: read_module(kernel, module).build)
        return Library(path, module_areas(module)[0].addresses.start)

    def _set_libraries(self, libraries: Iterable[Library]) -> None:
        found = tuple(libraries)
        if found != self.libraries:
            self.libraries = found
            self.libraries_version += 1
            kept = {library.path for library in found}
            if self.executable is not None:
                kept.add(self.executable)
            self.files.keep(kept)

    # ---- for people

    def moved(self) -> str:
        """For a user whose debugger was there before the kernel: how to have source
        lines now. A vmlinux that it was given has not been moved to the kernel."""
        if self.kernel is None:
            return ""
        offset = self.kernel.base - LINKED_AT & (1 << 64) - 1
        return (
            f"kvmgdb: the guest has a kernel: {self.facts['kernel']}; its symbols are read "
            f"from memory (with source lines: symbol-file -o {offset:#x} VMLINUX)\n"
        )

    def describe(self) -> list[str]:
        """Lines that say which kernel it is, or why there is none, and what of its
        symbols is missing."""
        if self.kernel is None:
            return [f"{'kernel':<12} unknown: {self.why_not}"]
        lines = [f"{name:<12} {value}" for name, value in self.facts.items()]
        lines.append(f"{'modules':<12} {len(self.libraries)}")
        paths = [self.executable or "", *(library.path for library in self.libraries)]
        lines += [f"note: {note}" for note in self.files.notes(paths)]
        return lines
