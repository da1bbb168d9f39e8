"""A terminal: tmux, with one program in it."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from tests.support.polling import wait_for

PATIENCE = 90.0


class Terminal:
    """Runs ``command`` in a terminal of its own; the last line of the screen is
    ``exit N`` once that has ended. A context manager, whose end is that of the
    terminal."""

    def __init__(self, command: list[str], directory: Path, columns: int = 80, rows: int = 24):
        self._socket = str(directory / "tmux")
        script = f"{shlex.join(command)}; echo exit $?; exec sleep 600"
        size = ["-x", str(columns), "-y", str(rows)]
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, "sh", "-c", script)

    def _tmux(self, *arguments: str) -> str:
        # Not that of whoever runs the tests.
        environment = {name: value for name, value in os.environ.items() if name != "TMUX"}
        return subprocess.run(
            ["tmux", "-S", self._socket, *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=90,
            env={**environment, "TERM": "xterm", "LC_ALL": "C.UTF-8"},
        ).stdout

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        """Ends the terminal under the program; harmless the second time."""
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], capture_output=True, timeout=90)

    def keys(self, *names: str) -> None:
        """Presses keys, by tmux's names for them."""
        for name in names:
            self._tmux("send-keys", name)

    def type(self, text: str) -> None:
        self._tmux("send-keys", "-l", text)

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    @property
    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    def see(self, *texts: str) -> str:
        """Waits until the screen has all of these, and gives it."""
        try:
            return wait_for(f"{texts} on the screen", lambda: self._with(texts), PATIENCE) or ""
        except AssertionError as error:
            raise AssertionError(f"{error}; it is\n{self.screen}") from error

    def _with(self, texts: tuple[str, ...]) -> str | None:
        screen = self.screen
        return screen if all(text in screen for text in texts) else None
