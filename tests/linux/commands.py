"""``kvmgdb``'s commands, as a user runs them on a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240


def kvmgdb(pid: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``kvmgdb COMMAND PID OPTIONS``, which must succeed."""
    command, *options = arguments
    return subprocess.run(
        [sys.executable, "-m", "kvmgdb", command, str(pid), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )


def answer(pid: int, *arguments: str) -> Any:
    """What it prints with ``--json``."""
    return json.loads(kvmgdb(pid, *arguments, "--json").stdout)


def log_of(pid: int) -> list[dict[str, Any]]:
    """The records of ``kvmgdb dmesg``."""
    return [json.loads(line) for line in kvmgdb(pid, "dmesg", "--json").stdout.splitlines()]
