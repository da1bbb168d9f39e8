"""Everything of ours that could be left in a VMM, read from outside."""

from __future__ import annotations

import ctypes
import hashlib
import os
from dataclasses import dataclass

from tests.agent.vm import Vm

# struct kvm_run (linux/kvm.h): immediate_exit, and kvm_valid_regs.
_IMMEDIATE_EXIT = 1
_VALID_REGS = 288


@dataclass(frozen=True)
class Footprint:
    """Compare one from before attaching with one from after."""

    code: str
    kvm_run: tuple[tuple[int, int], ...]
    masks: tuple[str, ...]
    tracers: tuple[str, ...]
    stopped: bool

    @classmethod
    def of(cls, vm: Vm) -> Footprint:
        tids = sorted(vm.tids())
        return cls(
            code=_hash_of_code(vm),
            kvm_run=tuple(_kvm_run(vm)),
            masks=tuple(vm.status(tid, "SigBlk") for tid in tids),
            tracers=tuple(vm.status(tid, "TracerPid") for tid in tids),
            stopped=any(vm.status(tid, "State")[0] in "tT" for tid in tids),
        )


def _mappings(vm: Vm) -> list[tuple[int, int, str, str]]:
    result = []
    with open(f"/proc/{vm.pid}/maps") as file:
        for line in file:
            words = line.split()
            start, end = (int(word, 16) for word in words[0].split("-"))
            result.append((start, end, words[1], words[5] if len(words) > 5 else ""))
    return result


def _hash_of_code(vm: Vm) -> str:
    """All executable pages of the VMM, and the guest's own code."""
    digest = hashlib.sha256(vm.read(vm.symbols["_start"], 0x1000))
    memory = os.open(f"/proc/{vm.pid}/mem", os.O_RDONLY)
    try:
        for start, end, flags, name in _mappings(vm):
            if "x" in flags and name != "[vsyscall]":
                for place in range(start, end, 1 << 20):
                    digest.update(os.pread(memory, min(1 << 20, end - place), place))
    finally:
        os.close(memory)
    return digest.hexdigest()


def _kvm_run(vm: Vm) -> list[tuple[int, int]]:
    """(kvm_valid_regs, immediate_exit) of each vCPU."""
    memory = os.open(f"/proc/{vm.pid}/mem", os.O_RDONLY)
    try:
        pages = []
        for start, _, _, name in _mappings(vm):
            if name.startswith("anon_inode:kvm-vcpu"):
                page = os.pread(memory, 4096, start)
                valid = ctypes.c_uint64.from_buffer_copy(page, _VALID_REGS).value
                pages.append((valid, page[_IMMEDIATE_EXIT]))
        return pages
    finally:
        os.close(memory)
