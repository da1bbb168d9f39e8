"""``python -m kvmgdb``, and the program of that name."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

_SIGNALLED = 128


def main() -> NoReturn:
    """Runs the command line. A signal that asks us to end lets us give the guest
    back first; the exit status is then 128 and its number, as that of a shell is."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        # While modules are loaded, nothing is held yet: it ends us without a word.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from kvmgdb.cli import main as run

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(number, _leave)
    try:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:
        sys.exit(_SIGNALLED + signal.SIGINT)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(_SIGNALLED + number)


if __name__ == "__main__":
    main()
