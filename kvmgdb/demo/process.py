"""Child processes that never outlive us."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO

from kvmgdb.errors import HostError

END_SECONDS = 5.0

# sun_path of struct sockaddr_un (unix(7)), less the longest name that we put
# into a private directory.
_PATH_LIMIT = 108 - len("/console.log") - 1


def private_directory(purpose: str) -> tempfile.TemporaryDirectory[str]:
    """A directory for sockets and files that only this user can enter.

    Raises HostError, also where Unix sockets in it would have too long a path.
    """
    try:
        directory = tempfile.TemporaryDirectory(prefix=f"kvmgdb-{purpose}-")
    except OSError as error:
        raise HostError(
            "cannot make a temporary directory",
            error.errno or 0,
            remedy="set TMPDIR to a directory that can be written",
        ) from None
    if len(os.fsencode(directory.name)) > _PATH_LIMIT:
        directory.cleanup()
        raise HostError(
            f"{directory.name} is too long a path for a Unix socket",
            remedy="set TMPDIR to a shorter one, such as /tmp",
        )
    return directory


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
