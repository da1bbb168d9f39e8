"""What cannot start says why, with status 2 (usage) or 4, and leaves nothing behind."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.require import NEEDS, required
from tests.vmm.vmm import GUESTS, PROGRAM, run

CHAIN = GUESTS / "chain.elf"


def cannot(reason: str) -> NoReturn:
    """Skips, or fails where everything is required."""
    if required() == frozenset(NEEDS):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give one kernel"),
        (["-m", "lots", CHAIN], "--memory lots is no size"),
        (["-c", "0", CHAIN], "--cpus 0"),
        (["-S", CHAIN], "--paused needs --control"),
        (["--serial", "tcp", CHAIN], "there are stdio, pty and none"),
        (["--frobnicate", CHAIN], "kvmgdb-vmm --help"),
    ],
)
def test_wrong_usage(arguments: list[str | Path], words: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert words in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nonexistent/kernel"], "cannot read kernel /nonexistent/kernel: No such file"),
        (["/"], "is no file of 1 byte"),
        (["/dev/null"], "is no file of 1 byte"),
        (["-i", "/nonexistent/initrd", CHAIN], "cannot read initrd"),
        (["-m", "32M", CHAIN], "memory too small; give at least 64M"),
        (["-m", "600G", CHAIN], "memory too large"),
        (["-c", "255", CHAIN], "255 vCPUs; this host supports 1 to"),
        (["--control", "fd:99", CHAIN], "not an inherited stream socket"),
        (["--control", "/tmp/" + "x" * 200, CHAIN], "1 to 107 bytes"),
        (["--control", "/nonexistent/socket", CHAIN], "cannot make control socket"),
        (["--flat", "0x10", CHAIN], "cannot start at 0x10"),
        (["--flat", "0xa0000", CHAIN], "cannot start at 0xa0000"),
        (["--flat", "0x9f000", CHAIN], "reaches beyond the first 640 KiB"),
        (["--flat", "0x7c00", "-a", "x", CHAIN], "no command line"),
        (["-a", "x" * 65536, CHAIN], "longer than the 65535"),
        (["-a", "x" * 256, GUESTS / "bootinfo-linux.bzimage"], "longer than the 255"),
    ],
)
def test_what_cannot_start(arguments: list[str | Path], words: str) -> None:
    result = run(*arguments)
    assert result.returncode == 4
    assert words in result.stderr
    assert result.stderr.startswith("kvmgdb-vmm: ")
    assert result.stderr.count("\n") == 1


def test_a_truncated_kernel(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(CHAIN.read_bytes()[:5000])
    result = run(kernel)
    assert result.returncode == 4
    assert "truncated" in result.stderr


def test_an_initrd_that_does_not_fit(tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    with initrd.open("wb") as file:
        file.truncate(80 << 20)
    result = run("-m", "64M", "-i", initrd, CHAIN)
    assert result.returncode == 4
    assert "initrd of 83886080 bytes does not fit" in result.stderr


def in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    """A shell script in a mount namespace of its own; in /mnt are the program, as
    ``vmm``, and a kernel, for everybody."""
    prepare = (
        f"mount -t tmpfs none /mnt && cp {PROGRAM} /mnt/vmm && cp {CHAIN} /mnt/kernel && "
        "chmod 755 /mnt /mnt/vmm && chmod 644 /mnt/kernel && "
    )
    result = subprocess.run(
        ["unshare", "--mount", "--", "sh", "-c", prepare + script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    if "unshare failed" in result.stderr:
        cannot("needs the right to make a mount namespace")
    return result


AS_NOBODY = "exec setpriv --reuid 65534 --clear-groups -- "


def test_no_dev_kvm() -> None:
    result = in_namespace(
        "mkdir /mnt/dev && mount --bind /mnt/dev /dev && exec /mnt/vmm /mnt/kernel"
    )
    assert result.returncode == 4
    assert "no /dev/kvm; load the module (modprobe kvm_intel or kvm_amd)" in result.stderr


def test_a_dev_kvm_that_is_none() -> None:
    result = in_namespace("mount --bind /dev/null /dev/kvm && exec /mnt/vmm /mnt/kernel")
    assert result.returncode == 4
    assert "/dev/kvm has API version -1, not 12" in result.stderr


def test_no_permission_for_dev_kvm() -> None:
    result = in_namespace(
        "touch /mnt/kvm && chmod 0 /mnt/kvm && mount --bind /mnt/kvm /dev/kvm && "
        + AS_NOBODY
        + "/mnt/vmm /mnt/kernel"
    )
    assert result.returncode == 4
    assert "no permission for /dev/kvm; join its group" in result.stderr


def test_a_kernel_that_may_not_be_read() -> None:
    result = in_namespace("chmod 0 /mnt/kernel && " + AS_NOBODY + "/mnt/vmm /mnt/kernel")
    assert result.returncode == 4
    assert "cannot read kernel /mnt/kernel: Permission denied" in result.stderr
