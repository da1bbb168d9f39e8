"""Stock Debian kernels, fetched as packages and unpacked without installing them.

A kernel in the cache is ``kernels/<release>/`` with ``vmlinuz``, ``config`` and
``modules/``; ``kernels/by-package/<package>`` is a link to it, so that a second
run asks nobody.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kvmgdb.demo.apt import Apt, Package, unpack
from kvmgdb.demo.cache import cache_directory, locked
from kvmgdb.errors import HostError

DEFAULT_PACKAGE = "linux-image-cloud-amd64"

# "HdrS" of the boot protocol's setup header (Documentation/arch/x86/boot.rst).
_MAGIC_OFFSET = 0x202
_MAGIC = b"HdrS"


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: its release (``uname -r``), bzImage and module tree."""

    release: str
    vmlinuz: Path
    modules: Path


def fetch_kernel(package: str = DEFAULT_PACKAGE, suite: str | None = None) -> Kernel:
    """The kernel of a Debian package, from the cache or fetched into it.

    ``package`` is an image package, a meta-package that depends on one, or a
    shell pattern of which the newest match is taken; ``suite`` names a Debian
    suite other than those of the machine's sources. Raises HostError.
    """
    cache = cache_directory("kernels")
    link = cache / "by-package" / _link_name(package, suite)
    if (kernel := _load(link)) is not None:
        return kernel
    if platform.machine() != "x86_64":
        raise HostError(
            f"the guest's kernel is for x86-64, and this machine is {platform.machine()}",
            remedy="run this on an x86-64 machine",
        )
    with locked(cache):
        if (kernel := _load(link)) is not None:
            return kernel
        release = _fetch(cache, package, suite)
        _relink(link, Path("..") / release)
    kernel = _load(link)
    if kernel is None:
        raise HostError(f"the cached kernel {release} vanished from {cache}")
    return kernel


def _link_name(package: str, suite: str | None) -> str:
    name = package if suite is None else f"{package}@{suite}"
    if "/" in name or name.startswith("."):
        raise HostError(f"{name!r} is not the name of a Debian package")
    return name


def _load(directory: Path) -> Kernel | None:
    try:
        real = directory.resolve(strict=True)
    except OSError:
        return None
    kernel = Kernel(real.name, real / "vmlinuz", real / "modules")
    return kernel if kernel.vmlinuz.is_file() and kernel.modules.is_dir() else None


def _relink(link: Path, target: Path) -> None:
    link.parent.mkdir(exist_ok=True)
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.rename(link)


def _fetch(cache: Path, package: str, suite: str | None) -> str:
    """Fetches and unpacks; what is in the cache under a release's name is complete,
    because it gets that name only as the last step. Returns the release."""
    for abandoned in cache.glob(".fetch-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as work:
            directory = Path(work)
            tree = directory / "tree"
            for archive in _download(cache_directory("apt"), package, suite, directory):
                unpack(archive, tree)
                archive.unlink()
            return _adopt(tree, directory / "kernel", cache)
    except OSError as error:
        raise HostError(f"cannot write to {cache}", error.errno or 0) from None


def _download(state: Path, pattern: str, suite: str | None, directory: Path) -> list[Path]:
    """Downloads the packages behind ``pattern``: with the machine's own lists where
    they serve, else with fresh ones."""
    if suite is None:
        apt = Apt()
        packages = _resolve(apt, pattern)
        if packages:
            _check_space(packages, directory)
            try:
                return _download_all(apt, packages, directory)
            except HostError:
                # The machine's lists can name a version that its mirror has
                # since replaced; fresh lists tell.
                for rest in directory.iterdir():
                    shutil.rmtree(rest)
    apt = Apt(state / (suite or "machine"), suite)
    apt.update()
    packages = _resolve(apt, pattern)
    if not packages:
        raise HostError(
            f"Debian's package lists have no kernel package {pattern!r}"
            + (f" in {suite}" if suite else ""),
            remedy="check apt's sources and the network (`apt-get update` says what fails)",
        )
    _check_space(packages, directory)
    return _download_all(apt, packages, directory)


def _download_all(apt: Apt, packages: list[Package], directory: Path) -> list[Path]:
    archives = []
    for package in packages:
        place = directory / package.name
        place.mkdir()
        archives.append(apt.download(package, place))
    return archives


def _resolve(apt: Apt, pattern: str) -> list[Package]:
    """The packages that hold the kernel: one, or its image, modules and the rest."""
    package = apt.find(pattern)
    if package is not None and package.images:
        package = apt.find(package.images[0])
    if package is None:
        return []
    if not any(name.startswith("linux-binary-") for name in package.parts):
        return [package]
    parts = [apt.find(name) for name in package.parts]
    return [part for part in parts if part is not None]


def _check_space(packages: list[Package], directory: Path) -> None:
    needed = sum(package.size + package.installed_size for package in packages) + (16 << 20)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise HostError(
            f"{directory.parent} has {free >> 20} MiB free, and {packages[0].name} needs "
            f"{needed >> 20} MiB",
            remedy="free some space, or set XDG_CACHE_HOME to another directory",
        )


def _adopt(tree: Path, kernel: Path, cache: Path) -> str:
    """Moves what we keep of an unpacked package into the cache."""
    # In /boot, or since 2026 beside the modules, which Debian 13 moved to /usr/lib.
    images = [*(tree / "boot").glob("vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    if len(images) != 1:
        raise HostError(f"the kernel package holds {len(images)} kernel images, not 1")
    (image,) = images
    if image.name == "vmlinuz":
        release, config = image.parent.name, image.parent / "config"
    else:
        release = image.name.removeprefix("vmlinuz-")
        config = image.parent / f"config-{release}"
    with image.open("rb") as file:
        header = file.read(_MAGIC_OFFSET + len(_MAGIC))
    if header[_MAGIC_OFFSET:] != _MAGIC:
        raise HostError(f"{image.name} of the kernel package is not a bzImage")
    kernel.mkdir()
    image.rename(kernel / "vmlinuz")
    config.rename(kernel / "config")
    places = (tree / prefix / "modules" / release for prefix in ("lib", "usr/lib"))
    for place in places:
        if place.is_dir():
            place.rename(kernel / "modules")
    if not (kernel / "modules" / "kernel").is_dir():
        raise HostError(f"the kernel package of {release} holds no modules")
    final = cache / release
    if _load(final) is None:
        shutil.rmtree(final, ignore_errors=True)
        kernel.rename(final)
    return release
