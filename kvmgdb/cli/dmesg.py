"""``kvmgdb dmesg``: the guest kernel's log."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext, suppress

import click

from kvmgdb.cli.guest import attached
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.log import LEVELS, Record, read_log
from kvmgdb.printable import printable_lines

_FOLLOW_SECONDS = 0.5


@click.command(epilog="Example: kvmgdb dmesg vm1 --level warn --follow")
@click.argument("target", required=False)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default=LEVELS[-1],
    show_default=True,
    help="Messages of this level and worse ones.",
)
@click.option("--follow", is_flag=True, help="Go on with what the guest logs, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def dmesg(target: str | None, level: str, follow: bool, as_json: bool) -> None:
    """Print the log of the guest's kernel.

    The guest runs on; a message that it is just writing is left out.
    """
    worst = LEVELS.index(level)
    with attached(target) as machine:
        kernel = find_kernel(machine)
        following = 0
        # Ctrl-C is how following ends.
        with suppress(KeyboardInterrupt) if follow else nullcontext():
            while True:
                for record in read_log(kernel):
                    if record.sequence >= following:
                        following = record.sequence + 1
                        if record.level <= worst:
                            _print(record, as_json)
                if not follow:
                    return
                time.sleep(_FOLLOW_SECONDS)


def _print(record: Record, as_json: bool) -> None:
    """``time`` in ns since boot."""
    if as_json:
        facts = {
            "sequence": record.sequence,
            "time": record.time,
            "level": record.level_name,
            "facility": record.facility,
            "caller": record.caller,
            "text": record.text,
        }
        click.echo(json.dumps(facts))
        return
    seconds, rest = divmod(record.time // 1000, 1_000_000)
    for line in printable_lines(record.text).split("\n"):
        click.echo(f"[{seconds:5}.{rest:06}] {line}")
