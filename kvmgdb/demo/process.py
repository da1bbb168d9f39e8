"""Child processes that never outlive us."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import IO

from kvmgdb.errors import HostError

END_SECONDS = 5.0


def start(
    command: Sequence[str],
    *,
    output: IO[bytes] | int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    env: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts ``command`` with its output in ``output`` and without input.

    It is killed when we die, however we die, and a Ctrl-C in our terminal does
    not reach it. Raises HostError where the program is not there.
    """
    if shutil.which(command[0]) is None:
        raise HostError(f"there is no program {command[0]}", remedy=f"install {command[0]}")
    return subprocess.Popen(
        # setpriv (util-linux) sets PR_SET_PDEATHSIG and becomes the program:
        # no code of ours runs between fork and exec, so threads do not matter.
        ["setpriv", "--pdeathsig", "KILL", "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=pass_fds,
        env=env,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process, politely at first, and waits until it is gone."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
