"""``kvmgdb modules``: the guest kernel's loaded modules."""

from __future__ import annotations

import click

from kvmgdb.cli.guest import attached, print_json, read_list
from kvmgdb.cli.terminal import print_table
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.modules import list_modules


@click.command(epilog="Example: kvmgdb modules vm1")
@click.argument("target", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def modules(target: str | None, as_json: bool) -> None:
    """List the modules that the guest's kernel has loaded."""
    with attached(target) as machine:
        kernel = find_kernel(machine)
        listed = read_list(machine, lambda: list_modules(kernel))
        rows = [
            {
                "name": module.name,
                "size": module.size,
                "references": module.references,
                "users": module.users,
                "state": module.state,
                "address": module.base,
                "areas": [
                    {"kind": area.kind, "address": area.base, "size": area.size}
                    for area in module.areas
                ],
            }
            for module in listed
        ]
    if as_json:
        print_json({"modules": rows, "damage": listed.damage})
        return
    print_table(
        {
            "NAME": False,
            "SIZE": True,
            "REFS": True,
            "STATE": False,
            "ADDRESS": True,
            "USERS": False,
        },
        [
            [
                str(row["name"]),
                str(row["size"]),
                str(row["references"]),
                str(row["state"]),
                f"{row['address']:#x}",
                " ".join(map(str, row["users"])) if isinstance(row["users"], list) else "",
            ]
            for row in rows
        ],
    )
