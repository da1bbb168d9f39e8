"""Debian packages as files: found and downloaded by apt-get, never installed.

Needs no root: where the machine's own package lists do not know a package, or
know it under an address that is gone, lists are fetched into a directory of
our own, from the sources that the machine's apt is configured with.
"""

from __future__ import annotations

import fnmatch
import os
import re
import selectors
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path

from kvmgdb.demo.progress import Advance, step
from kvmgdb.errors import HostError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
UPDATE_SECONDS = 600.0
DOWNLOAD_SECONDS = 1800.0
QUERY_SECONDS = 60.0
NETWORK_REMEDY = "check the network, and the mirror and proxy in apt's configuration"


@dataclass(frozen=True)
class Package:
    """A package that apt can download; sizes in bytes.

    ``images`` are the kernel packages that it depends on, ``parts`` those that a
    kernel package of 2026 and later is empty without.
    """

    name: str
    version: str
    size: int
    installed_size: int
    images: tuple[str, ...]
    parts: tuple[str, ...]


class Apt:
    """apt-get and apt-cache, with the machine's lists or with lists of our own.

    ``state`` is a directory for lists of our own, or None for the machine's;
    ``suite`` takes packages from that Debian suite only (``bookworm-backports``),
    whether or not the machine's sources name it.
    """

    def __init__(self, state: Path | None = None, suite: str | None = None) -> None:
        for program in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(program) is None:
                raise HostError(
                    f"cannot fetch a Debian kernel: this machine has no {program}",
                    remedy="run this on Debian or one of its derivatives",
                )
        self._options: list[str] = []
        self._state = state
        if state is not None:
            self._options = self._private_options(state, suite)

    def _private_options(self, state: Path, suite: str | None) -> list[str]:
        lists = state / "lists"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        (state / "cache").mkdir(exist_ok=True)
        options = [
            f"Dir::State::Lists={lists}/",
            f"Dir::Cache={state / 'cache'}/",
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
        ]
        if suite is not None:
            sources = state / "sources.list"
            signed = f" [signed-by={KEYRING}]" if KEYRING.exists() else ""
            sources.write_text(f"deb{signed} {debian_mirror()} {suite} main\n")
            options += [f"Dir::Etc::SourceList={sources}", "Dir::Etc::SourceParts=-"]
        return [word for option in options for word in ("-o", option)]

    def update(self) -> None:
        """Fetches the lists. Raises HostError."""
        with step("fetching Debian's package lists") as advance:
            self._get(["update"], None, advance, UPDATE_SECONDS)

    def find(self, pattern: str) -> Package | None:
        """The newest package whose name matches ``pattern`` (shell wildcards), or None."""
        names = [pattern]
        if any(character in pattern for character in "*?["):
            prefix = re.split(r"[*?[]", pattern, maxsplit=1)[0]
            known = _query(["apt-cache", *self._options, "pkgnames", prefix]).split()
            names = fnmatch.filter(known, pattern)
        if not names:
            return None
        show = ["apt-cache", *self._options, "--no-all-versions", "show", *names]
        # Without one of the names, or any, apt-cache fails and shows the others.
        stanzas = _query(show, may_fail=True).split("\n\n")
        packages = [package for stanza in stanzas if (package := _parse(stanza)) is not None]
        return max(packages, key=cmp_to_key(_by_version), default=None)

    def download(self, package: Package, directory: Path) -> Path:
        """Downloads into ``directory``; apt checks the signatures and sums. Raises HostError."""
        with step(f"downloading {package.name} ({package.size / 1e6:.0f} MB)") as advance:
            self._get(
                ["download", f"{package.name}={package.version}"],
                directory,
                advance,
                DOWNLOAD_SECONDS,
            )
        files = list(directory.glob("*.deb"))
        if len(files) != 1:
            raise HostError(f"apt-get download of {package.name} brought {len(files)} files, not 1")
        return files[0]

    def _get(
        self, arguments: list[str], directory: Path | None, advance: Advance, seconds: float
    ) -> None:
        read_end, write_end = os.pipe()
        with tempfile.TemporaryFile() as log:
            try:
                command = ["apt-get", "-q", *self._options, "-o", f"APT::Status-Fd={write_end}"]
                process = subprocess.Popen(
                    [*command, *arguments],
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(write_end,),
                    env=_environment(),
                )
            except OSError as error:
                os.close(read_end)
                raise HostError("cannot run apt-get", error.errno or 0) from None
            finally:
                os.close(write_end)
            try:
                _follow(read_end, advance, time.monotonic() + seconds)
                status = process.wait(10)
            except (TimeoutError, subprocess.TimeoutExpired):
                raise HostError(
                    f"apt-get {arguments[0]} did not end within {seconds:.0f} s",
                    remedy=NETWORK_REMEDY,
                ) from None
            finally:
                os.close(read_end)
                if process.poll() is None:
                    process.kill()
                    process.wait()
            if status != 0:
                log.seek(0)
                raise HostError(
                    f"apt-get {' '.join(arguments)} failed: {_complaint(log.read())}",
                    remedy=NETWORK_REMEDY,
                )


def debian_mirror() -> str:
    """The address of the Debian archive that this machine's apt uses. Raises HostError."""
    codename = ""
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            codename = line.partition("=")[2].strip('"')
    output = _query(["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)"])
    for line in output.splitlines():
        release, _, uri = line.partition(" ")
        if codename and release == codename:
            return uri
    raise HostError(
        "apt's sources on this machine do not name a Debian archive",
        remedy="add one to /etc/apt/sources.list",
    )


def unpack(package: Path, directory: Path) -> None:
    """Unpacks a .deb without installing it. Raises HostError."""
    with step(f"unpacking {package.name}"):
        result = subprocess.run(
            ["dpkg-deb", "--extract", str(package), str(directory)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(),
            timeout=DOWNLOAD_SECONDS,
        )
    if result.returncode != 0:
        raise HostError(f"cannot unpack {package.name}: {_complaint(result.stderr)}")


def _parse(stanza: str) -> Package | None:
    """A package from what ``apt-cache show`` prints of it (deb822(5))."""
    fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.MULTILINE))
    depends = fields.get("Depends", "")
    try:
        return Package(
            name=fields["Package"],
            version=fields["Version"],
            size=int(fields["Size"]),
            installed_size=int(fields.get("Installed-Size", "0")) * 1024,
            images=tuple(re.findall(r"(?:^|, )(linux-image-[^ ,|]+)", depends)),
            parts=tuple(re.findall(r"(?:^|, )(linux-(?:base|binary|modules)-\d[^ ,|]*)", depends)),
        )
    except (KeyError, ValueError):
        return None


def _by_version(a: Package, b: Package) -> int:
    """Debian's version order, as dpkg defines it."""
    for relation, value in (("lt", -1), ("gt", 1)):
        command = ["dpkg", "--compare-versions", a.version, relation, b.version]
        if subprocess.run(command, check=False).returncode == 0:
            return value
    return 0


def _query(command: list[str], may_fail: bool = False) -> str:
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(),
            timeout=QUERY_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise HostError(f"{command[0]} did not answer within {QUERY_SECONDS:.0f} s") from None
    if result.returncode != 0 and not may_fail:
        raise HostError(f"{command[0]} failed: {_complaint(result.stderr)}")
    return result.stdout.decode(errors="replace")


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _follow(descriptor: int, advance: Advance, deadline: float) -> None:
    """Reads apt's status lines (``dlstatus:item:percent:text``) to their end."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            data = os.read(descriptor, 65536)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                match = re.match(rb"dlstatus:[^:]*:(\d+(?:\.\d+)?):", line)
                if match:
                    advance(float(match[1]))


def _complaint(log: bytes) -> str:
    """What apt or dpkg itself says is wrong: its error lines, or else its last one."""
    lines = log.decode(errors="replace").strip().splitlines()
    errors = [line[2:].strip() for line in lines if line.startswith("E:")]
    return "; ".join(errors[:3]) or (lines[-1] if lines else "it printed nothing")
