"""An installed package has all its parts: nothing is taken from the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.kvm.guests import image, own_vmm_guest
from tests.support.require import requires

pytestmark = requires("kvm", "cc")

ROOT = Path(__file__).parents[2]
# What setup leaves in the sources, and what is no part of the package.
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "*.so")


def _run(*command: object) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=240, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of a fresh virtual environment with the wheel. What the package
    depends on is that of the tests, and so needs no network."""
    work = tmp_path_factory.mktemp("wheel")
    sources = work / "sources"
    sources.mkdir()
    for name in ("kvmgdb", "native", "gdb-scripts", "scripts"):
        shutil.copytree(ROOT / name, sources / name, ignore=_LEFT_OUT)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources / name)
    pip = (sys.executable, "-m", "pip")
    options = ("-q", "--no-deps", "--disable-pip-version-check")
    _run(*pip, "wheel", *options, "--no-build-isolation", "-w", work, sources)
    (wheel,) = work.glob("kvmgdb-*.whl")
    environment = work / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    paths = {"base": str(environment), "platbase": str(environment)}
    packages = Path(sysconfig.get_path("purelib", vars=paths))
    _run(*pip, "--python", environment / "bin" / "python", "install", *options, wheel)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


@pytest.mark.parametrize(
    "part",
    [
        "kvmgdb.__main__.__file__",
        "kvmgdb.cli.gdb.commands_file()",
        "kvmgdb.machine.own_vmm.vmm_path()",
    ],
)
def test_its_parts_are_the_installed_ones(installed: Path, part: str) -> None:
    module = part.rpartition(".")[0]
    printed = _run(installed / "python", "-c", f"import {module}; print({part})").strip()
    assert Path(printed).is_relative_to(installed.parent)
    assert Path(printed).is_file()


def test_it_profiles(installed: Path, tmp_path: Path) -> None:
    """With its own agent, and with all that a flame graph is made of."""
    output = tmp_path / "out.html"
    with own_vmm_guest("split") as pid:
        arguments = ("--duration", 2, "--symbols", image("split").elf, "-o", output)
        _run(installed / "kvmgdb", "profile", pid, *arguments)
    page = output.read_text()
    assert "split_leaf" in page
    assert "flamegraph" in page
    assert "d3js.org" in page
