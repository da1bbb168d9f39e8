"""What tests need of a machine, and what happens where it is not there.

A test marked ``@requires("kvm")`` (or ``requires_kvm``) is skipped with the
reason where the need is not met. ``KVMGDB_REQUIRE`` names needs, separated by
commas, or ``all``: there such a skip is a failure. ``python -m
tests.support.require`` prints the needs that this machine meets.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

SYSTEM_GDB = "/usr/bin/gdb"
SPEEDSCOPE = Path(__file__).resolve().parents[2] / "build" / "speedscope"
PYPI_GDB = str(Path(sys.prefix) / "bin" / "gdb")

# linux/kvm.h
_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01


def _program(*names: str) -> str:
    missing = [name for name in names if shutil.which(name) is None]
    return f"there is no {', '.join(missing)}" if missing else ""


def _gdb(path: str, version: str) -> str:
    try:
        output = subprocess.run(
            [path, "-nx", "--version"], capture_output=True, timeout=90, check=True, text=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path} does not run: {error}"
    first = output.splitlines()[0] if output else "nothing"
    return "" if first.split()[-1].startswith(version) else f"{path} is {first}"


def _kvm() -> str:
    try:
        descriptor = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _KVM_GET_API_VERSION)
            os.close(fcntl.ioctl(descriptor, _KVM_CREATE_VM))
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"/dev/kvm cannot be used: {error.strerror}"
    return ""


def _ia32() -> str:
    """Whether 32-bit programs without a library can be made, and run."""
    text = '__attribute__((used)) void _start(void) { __asm__("int $0x80" :: "a"(1), "b"(0)); }'
    flags = ["-m32", "-ffreestanding", "-fno-pie", "-nostdlib", "-static", "-no-pie"]
    with tempfile.TemporaryDirectory(prefix="kvmgdb-ia32-") as directory:
        binary = f"{directory}/program"
        command = ["gcc", *flags, "-x", "c", "-o", binary, "-"]
        try:
            subprocess.run(command, input=text, text=True, check=True, capture_output=True)
            subprocess.run([binary], check=True, timeout=90)
        except (OSError, subprocess.SubprocessError) as error:
            return f"32-bit programs cannot be made or run: {error}"
    return ""


def chromium() -> str | None:
    """A Chromium that draws without a screen. Debian's program of that name is a
    script that stays between the browser and whoever wants to end it."""
    return shutil.which("/usr/lib/chromium/chromium-headless-shell") or shutil.which("chromium")


def _chromium() -> str:
    return _program("chromedriver") or ("" if chromium() else "there is no chromium")


def _speedscope() -> str:
    return "" if (SPEEDSCOPE / "index.html").is_file() else f"there is no {SPEEDSCOPE}"


# Each says why the machine does not have it, or nothing.
NEEDS: dict[str, Callable[[], str]] = {
    "qemu": lambda: _program("qemu-system-x86_64"),
    "gdb": lambda: _gdb(SYSTEM_GDB, ""),
    "gdb18": lambda: _gdb(PYPI_GDB, "18."),
    "cc": lambda: _program("gcc"),
    "ia32": _ia32,
    "elflint": lambda: _program("eu-elflint"),
    "pahole": lambda: _program("pahole"),
    "apt": lambda: _program("apt-get", "apt-cache", "dpkg-deb"),
    "kvm": _kvm,
    "chromium": _chromium,
    "speedscope": _speedscope,
    "tmux": lambda: _program("tmux"),
    "lz4": lambda: _program("lz4"),
}


@functools.cache
def why_not(need: str) -> str:
    """Why this machine does not have ``need``, or an empty string."""
    return NEEDS[need]()


def required() -> frozenset[str]:
    """The needs that ``KVMGDB_REQUIRE`` names. Raises UsageError on an unknown one."""
    words = {word.strip() for word in os.environ.get("KVMGDB_REQUIRE", "").split(",")} - {""}
    if "all" in words:
        return frozenset(NEEDS)
    unknown = words - set(NEEDS)
    if unknown:
        raise pytest.UsageError(
            f"KVMGDB_REQUIRE names unknown needs: {', '.join(sorted(unknown))} "
            f"(known: all, {', '.join(NEEDS)})"
        )
    return frozenset(words)


def demand(needs: Iterable[str]) -> None:
    """Skips the running test, or fails it, where one of ``needs`` is not met."""
    for need in needs:
        reason = why_not(need)
        if reason and need in required():
            pytest.fail(f"KVMGDB_REQUIRE demands {need}: {reason}", pytrace=False)
        if reason:
            pytest.skip(f"needs {need}: {reason}")


def requires(*needs: str) -> pytest.MarkDecorator:
    """Marks a test that needs this of the machine."""
    return pytest.mark.requires(*needs)


requires_qemu = requires("qemu")
requires_gdb = requires("gdb")
requires_gdb18 = requires("gdb18")
requires_kvm = requires("kvm")
requires_cc = requires("cc")


if __name__ == "__main__":
    print(",".join(need for need in NEEDS if not why_not(need)))
