"""The compiled parts of the package; everything else is in pyproject.toml.

The extension is linked into Python. The agent and the VMM are programs of their
own: an installed package carries them in ``kvmgdb/bin``, a checkout uses those
in ``native/*/build``. The JavaScript of flame graphs is fetched into the package.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PROGRAMS = {"agent": "kvmgdb-agent", "vmm": "kvmgdb-vmm"}


WEB_LIBRARIES = "kvmgdb/profiler/web/lib"


class BuildWithPrograms(build_py):
    """Builds the programs, and fetches the libraries, along with the Python files."""

    def run(self) -> None:
        subprocess.run(
            [sys.executable, "scripts/web_libraries.py", "flame-graph", WEB_LIBRARIES], check=True
        )
        super().run()
        for part, program in PROGRAMS.items():
            subprocess.run(["make", "-s", "-C", f"native/{part}"], check=True)
            if not self.editable_mode:
                target = Path(self.build_lib) / "kvmgdb" / "bin"
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path("native") / part / "build" / program, target / program)


setup(
    cffi_modules=["native/build_ffi.py:ffibuilder"],
    cmdclass={"build_py": BuildWithPrograms},
)
