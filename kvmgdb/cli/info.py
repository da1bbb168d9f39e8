"""``kvmgdb info``: what a machine is, and which kernel runs in it."""

from __future__ import annotations

from contextlib import suppress

import click

from kvmgdb.cli.guest import attached, print_json
from kvmgdb.cli.terminal import echo
from kvmgdb.errors import KvmgdbError, NoKernelError, UnsupportedError
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.figures import memory_figures
from kvmgdb.linux.identity import Identity, identify
from kvmgdb.linux.kernel import Kernel
from kvmgdb.machine.interface import Machine


@click.command(epilog="Example: kvmgdb info vm1")
@click.argument("target", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def info(target: str | None, as_json: bool) -> None:
    """Show a virtual machine and the Linux kernel that runs in it.

    The guest is stopped for milliseconds, to read its control registers.
    """
    with attached(target) as machine:
        # The kernel first: reading it finds where guest RAM lies.
        kernel = _kernel_facts(machine)
        facts = {"machine": _machine_facts(machine), **kernel}
    if as_json:
        print_json(facts)
        return
    for title, section in facts.items():
        if isinstance(section, dict):
            for name, value in section.items():
                if value not in (None, "", []):
                    echo(f"{name.replace('_', ' ') + ':':<18}{_show(name, value)}")
        elif section is not None:
            echo(f"{title + ':':<18}{section}")


def _show(name: str, value: object) -> str:
    if isinstance(value, int) and name in ("base", "kaslr_offset"):
        return f"{value:#x}"
    if isinstance(value, int) and name.startswith("memory"):
        return f"{value >> 20} MiB"
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def _machine_facts(machine: Machine) -> dict[str, object]:
    """``memory`` in bytes."""
    about = machine.info()
    return {
        "name": about.name,
        "backend": about.backend,
        "pid": about.pid,
        "accelerator": about.accelerator,
        "vcpus": about.vcpus,
        "memory": sum(r.size for r in about.regions if not r.read_only) or None,
        "machine_state": about.state,
        "notes": list(about.notes),
    }


def _kernel_facts(machine: Machine) -> dict[str, object]:
    try:
        kernel = find_kernel(machine)
    except (NoKernelError, UnsupportedError) as error:
        return {"kernel": None, "no kernel": str(error)}
    return {"kernel": _facts(kernel, identify(kernel))}


def _facts(kernel: Kernel, identity: Identity) -> dict[str, object]:
    figures = None
    with suppress(KvmgdbError):
        figures = memory_figures(kernel)
    return {
        "release": identity.release,
        "banner": identity.banner,
        "state": identity.state,
        "build_id": identity.build_id,
        "command_line": identity.command_line,
        "base": kernel.base,
        "kaslr_offset": identity.kaslr_offset,
        "paging": kernel.location.paging.mode.name,
        "found_by": kernel.location.found_by,
        "symbols": len(kernel.symbols),
        "memory_total": figures.total if figures else None,
        "memory_free": figures.free if figures else None,
        "disagreements": list(identity.disagreements),
    }
