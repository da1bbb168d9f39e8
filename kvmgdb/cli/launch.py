"""Starting a virtual machine for the user: under KVM by our own VMM, or by
QEMU's translator."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvmgdb.demo.process import end
from kvmgdb.errors import HostError, MachineError
from kvmgdb.machine.address import SocketAddress
from kvmgdb.machine.interface import Machine
from kvmgdb.machine.own_vmm import OwnMachine, vmm_path
from kvmgdb.machine.qemu import QemuMachine

_QEMU = "qemu-system-x86_64"
_START_TIMEOUT = 10.0
_PROBE_TIMEOUT = 10.0
# In 16-bit real mode: popcnt ax, ax; mov al, 0; out 0xf4, al; hlt. A KVM that
# interprets guest code fails at the first of them, and with it at most kernels.
_PROBE = bytes.fromhex("f30fb8c0 b000 e6f4 f4".replace(" ", ""))
_PROBE_PASSED = 1


@dataclass(frozen=True)
class Boot:
    """What to boot: paths, the kernel command line, guest RAM as ``512M``."""

    kernel: str
    initrd: str | None
    append: str
    memory: str
    cpus: int
    halted: bool


@dataclass(frozen=True)
class Launched:
    """A machine that was started; ``open`` attaches to it."""

    process: subprocess.Popen[bytes]
    open: Callable[[], Machine]


def kvm_unusable() -> str:
    """Why KVM cannot run an ordinary kernel here, or an empty string: tried with
    a guest of a few instructions."""
    if not os.path.exists("/dev/kvm"):
        return "there is no /dev/kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "this user may not open /dev/kvm"
    program = vmm_path()
    if not program.exists():
        return f"{program} is not built"
    with tempfile.TemporaryDirectory(prefix="kvmgdb-probe-") as directory:
        image = Path(directory) / "probe"
        image.write_bytes(_PROBE)
        command = [str(program), "--flat", "0x7c00", "--serial", "none", "--exit-on-fault"]
        command += ["-m", "64M", str(image)]
        try:
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PROBE_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"a guest of four instructions did not run: {error}"
    if result.returncode == _PROBE_PASSED:
        return ""
    words = result.stderr.decode(errors="replace").strip().splitlines()
    return f"KVM cannot run ordinary code here ({words[0] if words else 'it failed'})"


def launch(boot: Boot, accelerator: str, directory: Path) -> Launched:
    """Starts a machine with its sockets in ``directory``. Raises HostError or
    MachineError where it does not start."""
    return _launch_own(boot, directory) if accelerator == "kvm" else _launch_qemu(boot, directory)


def _launch_own(boot: Boot, directory: Path) -> Launched:
    program = vmm_path()
    if not program.exists():
        raise HostError(f"{program} is not built", remedy="run `make setup` in the checkout")
    control = directory / "control"
    process = _start(
        [
            *(str(program), "-m", boot.memory, "-c", str(boot.cpus), "-a", boot.append),
            *(("-i", boot.initrd) if boot.initrd else ()),
            *("--control", str(control)),
            *(("-S",) if boot.halted else ()),
            boot.kernel,
        ]
    )
    _wait_for_socket(process, control, "the VMM")
    name = f"kvmgdb-run-{os.getpid()}"
    return Launched(process, lambda: OwnMachine.open_own(process.pid, control, name))


def _launch_qemu(boot: Boot, directory: Path) -> Launched:
    if shutil.which(_QEMU) is None:
        raise HostError(
            f"{_QEMU} is not installed", remedy="on Debian: apt-get install qemu-system-x86"
        )
    monitor = directory / "qmp"
    process = _start(
        [
            *(_QEMU, "-nodefaults", "-display", "none", "-accel", "tcg", "-cpu", "max"),
            *("-name", f"kvmgdb-run-{os.getpid()}", "-m", boot.memory, "-smp", str(boot.cpus)),
            *("-chardev", "stdio,id=serial,signal=on", "-serial", "chardev:serial"),
            *("-qmp", f"unix:{monitor},server=on,wait=off"),
            *("-kernel", boot.kernel, "-append", boot.append),
            *(("-initrd", boot.initrd) if boot.initrd else ()),
            *(("-S",) if boot.halted else ()),
        ]
    )
    _wait_for_socket(process, monitor, "QEMU")
    address = SocketAddress(path=str(monitor))
    return Launched(process, lambda: QemuMachine.open_qmp(address))


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    # setpriv (util-linux): the machine must not outlive a kvmgdb that is killed.
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *command])


def _wait_for_socket(process: subprocess.Popen[bytes], path: Path, who: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while not _listens(path):
        if process.poll() is not None:
            raise MachineError(f"{who} did not start (exit status {process.returncode})")
        if time.monotonic() > deadline:
            end(process)
            raise MachineError(f"{who} did not start within {_START_TIMEOUT:g} s")
        time.sleep(0.02)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
