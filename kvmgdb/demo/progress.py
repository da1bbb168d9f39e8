"""Progress of a long step: a bar on a terminal, a line elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

Advance = Callable[[float], None]


@contextmanager
def step(title: str, console: Console | None = None) -> Iterator[Advance]:
    """Shows ``title`` while the block runs; the block calls the result with the
    percentage (0 to 100) that is done. Goes to standard error by default."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{title} ...", highlight=False, markup=False, soft_wrap=True)
        yield lambda percent: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=100.0)
        yield lambda percent: progress.update(task, completed=percent)
