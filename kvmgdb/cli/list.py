"""``kvmgdb list``: the virtual machines on this host."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from kvmgdb.errors import KvmgdbError
from kvmgdb.machine.qemu_process import QemuProcess, listening_sockets, qemu_processes


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array, for programs.")
def list_machines(as_json: bool) -> None:
    """List the virtual machines on this host (QEMU)."""
    rows = [_row(process) for process in qemu_processes()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("no virtual machine runs on this host that this user can see")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("PID", "VMM", "NAME", "VCPUS", "MEMORY", "ACCEL", "UPTIME", "ACCESS"):
        numeric = title in ("PID", "VCPUS", "MEMORY", "UPTIME")
        table.add_column(title, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(
            str(row["pid"]),
            str(row["vmm"]),
            str(row["name"]),
            str(row["vcpus"]),
            f"{int(str(row['memory'])) >> 20} MiB",
            str(row["accelerator"]),
            _duration(int(str(row["uptime"]))),
            str(row["access"]),
        )
    Console(width=None if Console().is_terminal else 200, highlight=False).print(table)


def _row(process: QemuProcess) -> dict[str, object]:
    """Memory in bytes, uptime in whole seconds."""
    return {
        "pid": process.pid,
        "vmm": "QEMU",
        "name": process.name,
        "vcpus": process.vcpus,
        "memory": process.memory,
        "accelerator": process.accelerator,
        "uptime": int(process.uptime),
        "access": _access(process.pid),
    }


def _access(pid: int) -> str:
    """ "ok", or what this user lacks."""
    try:
        listening_sockets(pid)
    except KvmgdbError as error:
        return f"no: {error}"
    return "ok"


def _duration(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{seconds:02}"
