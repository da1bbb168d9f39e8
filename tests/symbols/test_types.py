"""Types of the file as GDB has them, against pahole on the guest's own BTF."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from kvmgdb.linux.kernel import Kernel
from tests.support.gdb import gdb_batch
from tests.support.require import requires
from tests.symbols import pahole

STRUCTURES = 500
IN_GDB = Path(__file__).parent / "in_gdb.py"


@pytest.fixture
def btf(kernel: Kernel, tmp_path: Path) -> Path:
    """The guest's BTF in a file."""
    start, end = kernel.symbol("__start_BTF"), kernel.symbol("__stop_BTF")
    path = tmp_path / "btf"
    path.write_bytes(kernel.read(start, end - start))
    return path


@requires("pahole")
def test_structures_are_as_pahole_has_them(
    gdb_path: str, kernel: Kernel, vmlinux: Path, btf: Path, tmp_path: Path
) -> None:
    sizes = pahole.sizes(btf)
    # Where a name stands for several structures, which one is meant is open.
    counts: dict[str, int] = {}
    table = kernel.types.table
    for type_id in table.ids:
        found = table.type(type_id)
        if found.kind.name == "STRUCT" and found.name:
            counts[found.name] = counts.get(found.name, 0) + 1
    candidates = sorted(name for name in sizes if counts.get(name) == 1)
    chosen = random.Random(501).sample(candidates, STRUCTURES)
    chosen += ["task_struct", "mm_struct", "rq", "page", "sk_buff", "inode", "net_device"]
    names, output = tmp_path / "names", tmp_path / "output"
    names.write_text("\n".join(chosen))
    result = gdb_batch(
        gdb_path,
        f'set $names = "{names}"',
        f'set $output = "{output}"',
        f"file {vmlinux}",
        f"source {IN_GDB}",
    )
    assert output.exists(), result.text
    in_gdb = json.loads(output.read_text())
    expected = pahole.members(btf, chosen)
    assert {name: entry["size"] for name, entry in in_gdb.items()} == {
        name: sizes[name] for name in chosen
    }
    compared = 0
    for name, members in expected.items():
        assert [tuple(member) for member in in_gdb[name]["members"]] == members, name
        compared += len(members)
    assert len(expected) == len(set(chosen))
    assert compared > 2000


def test_what_a_user_asks_for(gdb_path: str, kernel: Kernel, vmlinux: Path) -> None:
    answers = {
        "ptype struct list_head": "struct list_head *next;",
        "ptype vfs_read": "type = long (struct file *, char *, size_t, loff_t *)",
        "whatis init_task": "type = struct task_struct",
        "whatis init_task.comm": "type = char [16]",
        "ptype enum system_states": "SYSTEM_RUNNING",
        "whatis percpu": f"type = struct percpu_area *[{kernel.cpu_count}]",
        "whatis runqueues": "type = struct rq",
        "p/x &runqueues": f"= {kernel.symbol('runqueues'):#x}",
        "p sizeof(struct task_struct)": f"= {kernel.types.size('task_struct')}",
        "p sizeof(((struct task_struct *)0)->se)": f"= {kernel.types.size('sched_entity')}",
        "info line vfs_read": f"address {kernel.symbol('vfs_read'):#x} <vfs_read>",
        "break vfs_read": f"Breakpoint 1 at {kernel.symbol('vfs_read'):#x}",
        "info scope vfs_read": "a variable in $rdi",
        "info symbol schedule": "schedule in section .text",
    }
    commands = [word for command in answers for word in ("echo @@", command)]
    output = gdb_batch(gdb_path, f"file {vmlinux}", *commands).text
    for (command, answer), shown in zip(answers.items(), output.split("@@")[1:], strict=True):
        assert answer in shown, f"{command}: {shown}"
    assert "warning" not in output
    assert "rror" not in output
