"""Just enough of ptrace(2) to look at one vCPU thread as a debugger of VMMs does."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from pathlib import Path

_PTRACE_CONT = 7
_PTRACE_GETREGS = 12
_PTRACE_SETREGS = 13
_PTRACE_DETACH = 17
_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_WALL = 0x40000000

# struct user_regs_struct (sys/user.h): 27 words.
_RAX, _RSI, _ORIG_RAX, _RIP = 10, 13, 15, 16
_SYS_IOCTL = 16
_KVM_RUN = 0xAE80
_EINTR = 4

# struct kvm_run (linux/kvm.h)
_VALID_REGS = 288
_SYNC_REGS = 304
_KVM_SYNC_X86_REGS = 1
_RUN_RBX, _RUN_RIP = 1, 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, tid: int, data: object = None) -> None:
    if _libc.ptrace(request, tid, None, data) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class VcpuThread:
    """The thread of vCPU 0, seized until the end of the block."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.tid = next(
            int(task.name)
            for task in Path(f"/proc/{pid}/task").iterdir()
            if (task / "comm").read_text() == "vcpu-0\n"
        )
        self._kvm_run = next(
            int(line.split("-")[0], 16)
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
            if line.endswith("anon_inode:kvm-vcpu:0")
        )
        self._stopped = False
        self._call = 0  # where KVM_RUN is made, once known
        _ptrace(_PTRACE_SEIZE, self.tid)

    def __enter__(self) -> VcpuThread:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._stopped = False
        _ptrace(_PTRACE_DETACH, self.tid)

    def stop(self) -> None:
        """Stops the thread at its KVM_RUN: one that returned -EINTR is rewound, so
        that the VMM never sees that. Elsewhere in the VMM it is let go, and tried again."""
        if self._stopped:
            return
        deadline = time.monotonic() + 60
        while not self._stop_once(deadline):
            assert time.monotonic() < deadline, "the thread is not in KVM_RUN"
            self.resume()
            time.sleep(0.005)
        self._stopped = True

    def _stop_once(self, deadline: float) -> bool:
        _ptrace(_PTRACE_INTERRUPT, self.tid)
        while os.waitpid(self.tid, _WALL | os.WNOHANG)[0] == 0:
            assert time.monotonic() < deadline, "the thread does not stop"
            time.sleep(0.005)
        registers = (ctypes.c_ulong * 27)()
        _ptrace(_PTRACE_GETREGS, self.tid, ctypes.addressof(registers))
        if registers[_RIP] == self._call:
            return True  # the rewound call has not been made yet
        if registers[_ORIG_RAX] != _SYS_IOCTL or registers[_RSI] != _KVM_RUN:
            return False
        if ctypes.c_long(registers[_RAX]).value != -_EINTR:
            return False
        registers[_RIP] -= 2
        registers[_RAX] = registers[_ORIG_RAX]
        self._call = registers[_RIP]
        _ptrace(_PTRACE_SETREGS, self.tid, ctypes.addressof(registers))
        return True

    def resume(self) -> None:
        self._stopped = False
        _ptrace(_PTRACE_CONT, self.tid)

    def sync_registers(self, on: bool) -> None:
        """Asks KVM to leave RBX, RIP... in kvm_run whenever KVM_RUN returns."""
        self._write(_VALID_REGS, struct.pack("<Q", _KVM_SYNC_X86_REGS if on else 0))

    def registers(self) -> tuple[int, int]:
        """RBX and RIP of the guest at the last stop."""
        words = struct.unpack("<18Q", self._read(_SYNC_REGS, 144))
        return words[_RUN_RBX], words[_RUN_RIP]

    def exit_reason(self) -> int:
        return int(struct.unpack("<I", self._read(8, 4))[0])

    def _read(self, offset: int, size: int) -> bytes:
        with open(f"/proc/{self._pid}/mem", "rb", buffering=0) as memory:
            memory.seek(self._kvm_run + offset)
            return memory.read(size)

    def _write(self, offset: int, data: bytes) -> None:
        with open(f"/proc/{self._pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(self._kvm_run + offset)
            memory.write(data)
