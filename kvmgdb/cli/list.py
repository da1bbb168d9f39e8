"""``kvmgdb list``: the virtual machines on this host."""

from __future__ import annotations

import json
from typing import Any

import click

from kvmgdb.cli.terminal import print_table
from kvmgdb.machine.processes import VmProcess, vm_processes


@click.command("list", epilog="Example: kvmgdb list --json")
@click.option("--json", "as_json", is_flag=True, help="One JSON array, for programs.")
def list_machines(as_json: bool) -> None:
    """List the virtual machines on this host."""
    rows = [_row(process) for process in vm_processes()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("no virtual machine runs on this host that this user can see")
        return
    titles = {
        title: title in ("PID", "VCPUS", "MEMORY", "UPTIME")
        for title in ("PID", "VMM", "NAME", "VCPUS", "MEMORY", "ACCEL", "UPTIME", "ACCESS")
    }
    print_table(titles, [_cells(row) for row in rows], fold=True)


def _row(process: VmProcess) -> dict[str, Any]:
    """Memory in bytes, uptime in whole seconds; null is what cannot be seen."""
    return {
        "pid": process.pid,
        "vmm": process.vmm,
        "name": process.name,
        "vcpus": process.vcpus,
        "memory": process.memory,
        "accelerator": process.accelerator,
        "uptime": int(process.uptime),
        "missing": process.missing,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    memory = "?" if row["memory"] is None else f"{row['memory'] >> 20} MiB"
    vcpus = "?" if row["vcpus"] is None else str(row["vcpus"])
    return [
        str(row["pid"]),
        row["vmm"],
        row["name"],
        vcpus,
        memory,
        row["accelerator"],
        _duration(row["uptime"]),
        f"no: {row['missing']}" if row["missing"] else "yes",
    ]


def _duration(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{seconds:02}"
