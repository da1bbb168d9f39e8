"""Fetching kernels: from real packages, into caches of the tests' own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kvmgdb.demo.apt import Apt
from kvmgdb.demo.cache import cache_directory
from kvmgdb.demo.kernel import DEFAULT_PACKAGE, Kernel, fetch_kernel
from kvmgdb.errors import HostError
from tests.guests.linux.fixtures import StartGuest
from tests.support.require import requires

pytestmark = requires("apt")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kvmgdb" / "kernels"


@pytest.fixture
def no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Debian's tools."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def kept(cache: Path) -> list[str]:
    """What is in the cache under a name that is not a hidden one."""
    return sorted(path.name for path in cache.iterdir() if not path.name.startswith("."))


def test_a_cached_kernel_asks_nobody(linux_kernel: Kernel, no_apt: None) -> None:
    assert fetch_kernel() == linux_kernel
    assert linux_kernel.vmlinuz.read_bytes()[0x202:0x206] == b"HdrS"
    assert list(linux_kernel.modules.rglob("*.ko*"))


@pytest.mark.usefixtures("no_apt")
def test_a_machine_without_apt(empty_cache: Path) -> None:
    with pytest.raises(HostError, match="this machine has no apt-get"):
        fetch_kernel()
    assert kept(empty_cache) == []


def test_a_package_that_does_not_exist(empty_cache: Path) -> None:
    with pytest.raises(HostError, match="have no kernel package 'linux-image-of-nobody'") as caught:
        fetch_kernel("linux-image-of-nobody")
    assert "apt's sources" in caught.value.remedy
    assert kept(empty_cache) == []


def test_a_suite_that_does_not_exist(empty_cache: Path) -> None:
    with pytest.raises(HostError, match="no-such-suite"):
        fetch_kernel(suite="no-such-suite")
    assert kept(empty_cache) == []


def test_a_package_that_is_no_kernel(empty_cache: Path) -> None:
    with pytest.raises(HostError, match="holds 0 kernel images"):
        fetch_kernel("hello")
    assert kept(empty_cache) == []


@pytest.mark.parametrize("name", ["../escape", "a/b", ".hidden"])
def test_a_name_that_is_no_package(empty_cache: Path, name: str) -> None:
    with pytest.raises(HostError, match="not the name of a Debian package"):
        fetch_kernel(name)


def test_without_space(empty_cache: Path) -> None:
    """On a file system of one MiB."""
    empty_cache.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(empty_cache)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system needs root")
    try:
        with pytest.raises(HostError, match=r"has \d MiB free, and linux-image-.* needs \d+ MiB"):
            fetch_kernel()
        assert kept(empty_cache) == []
    finally:
        subprocess.run(["umount", str(empty_cache)], check=True)


def test_what_a_killed_fetch_left_is_removed(empty_cache: Path) -> None:
    abandoned = empty_cache / ".fetch-abandoned"
    abandoned.mkdir(parents=True)
    with pytest.raises(HostError):
        fetch_kernel("linux-image-of-nobody")
    assert not abandoned.exists()


def test_a_broken_kernel_in_the_cache_is_no_kernel(linux_kernel: Kernel, empty_cache: Path) -> None:
    """Without its image; and apt is asked again."""
    broken = empty_cache / linux_kernel.release
    (broken / "modules").mkdir(parents=True)
    link = empty_cache / "by-package" / DEFAULT_PACKAGE
    link.parent.mkdir()
    link.symlink_to(Path("..") / linux_kernel.release)
    kernel = fetch_kernel()
    assert kernel.vmlinuz.stat().st_size == linux_kernel.vmlinuz.stat().st_size
    shutil.rmtree(empty_cache)


def test_a_pattern_takes_the_newest() -> None:
    package = Apt().find("linux-image-6.1.0-*-cloud-amd64")
    meta = Apt().find(DEFAULT_PACKAGE)
    assert package is not None
    assert meta is not None
    assert meta.images == (package.name,)


def test_the_cache_of_a_user_without_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(HostError, match="cannot make the cache directory") as caught:
        cache_directory("kernels")
    assert "XDG_CACHE_HOME" in caught.value.remedy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "suite"),
    [
        (DEFAULT_PACKAGE, "bookworm-backports"),
        ("linux-image-6.1.0-*-rt-amd64", None),
        # In several packages.
        (DEFAULT_PACKAGE, "sid"),
    ],
)
def test_other_kernels_boot(start_linux_guest: StartGuest, package: str, suite: str | None) -> None:
    kernel = fetch_kernel(package, suite)
    guest = start_linux_guest(kernel, memory=512)
    assert kernel.release.encode() in guest.read_file("/proc/version")
    assert guest.makes_progress()
