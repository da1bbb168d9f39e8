"""Breakpoints of the server's own where the kernel starts a module and where it frees one.

So that a breakpoint which waits for a module hits in it: debuggers learn of the
module before its first instruction runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmgdb.errors import KvmgdbError
from kvmgdb.machine.interface import BreakpointKind, Machine, StopEvent, StopReason
from kvmgdb.machine.registers import Group
from kvmgdb.rsp.guest import Guest

if TYPE_CHECKING:
    from kvmgdb.rsp.debuggee import Debuggee

# kernel/module/main.c, all versions from 2.6: both take the struct module as their
# first argument. At the first the module is on the list, relocated, and its BTF
# is there; none of it has run.
_STARTS = "do_init_module"
_FREES = "free_module"
_GENERAL = frozenset({Group.GENERAL})


class ModuleWatch:
    """``planted``: addresses (GVA) with what happens there."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self.planted: dict[int, str] = {}

    def plant(self, debuggee: Debuggee, wanted: bool) -> None:
        """Plants what is missing, or removes what is too much: also after the guest
        has booted another kernel. The machine stands."""
        addresses = self._addresses(debuggee.machine) if wanted else {}
        if addresses == self.planted:
            return
        for address in self.planted.keys() - addresses.keys():
            try:
                debuggee.remove_breakpoint(self, BreakpointKind.SOFTWARE, address, 1)
            except KvmgdbError as error:
                debuggee.log(f"error: {error}")
        kept = {at: name for at, name in self.planted.items() if addresses.get(at) == name}
        self.planted = kept
        for address, name in addresses.items():
            if address in kept:
                continue
            try:
                debuggee.insert_breakpoint(self, BreakpointKind.SOFTWARE, address, 1)
            except KvmgdbError as error:
                debuggee.log(f"modules are noticed at stops only: {error}")
                return
            kept[address] = name

    def _addresses(self, machine: Machine) -> dict[int, str]:
        kernel = self._guest.kernel
        ability = machine.breakpoints
        if kernel is None or ability is None:
            return {}
        if BreakpointKind.SOFTWARE not in ability.supported():
            return {}
        found = {}
        for name in (_STARTS, _FREES):
            address = kernel.find_symbol(name)
            if address is not None and address in kernel.text:
                found[address] = name
        return found

    def take(self, machine: Machine, event: StopEvent) -> bool:
        """Whether a stop is one of these; the list of modules is read again then."""
        if event.reason is not StopReason.BREAKPOINT or event.address not in self.planted:
            return False
        module = machine.vcpus[event.vcpu].read_registers(_GENERAL).get("rdi")
        if module is not None:
            if self.planted[event.address] == _FREES:
                self._guest.free(module)
            else:
                self._guest.add(module)
        self._guest.read_libraries()
        return True
