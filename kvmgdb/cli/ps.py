"""``kvmgdb ps``: the guest's processes."""

from __future__ import annotations

import click

from kvmgdb.cli.guest import attached, print_json, read_list
from kvmgdb.cli.terminal import print_table
from kvmgdb.linux.attach import find_kernel
from kvmgdb.linux.tasks import Task, TaskList, list_tasks

# Deeper than any shell goes; parents that go round end here too.
_MAX_DEPTH = 64


@click.command(epilog="Example: kvmgdb ps vm1 --tree")
@click.argument("target", required=False)
@click.option("--threads", is_flag=True, help="Every thread, not only processes.")
@click.option("--tree", is_flag=True, help="Children below their parents.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def ps(target: str | None, threads: bool, tree: bool, as_json: bool) -> None:
    """List the processes of the guest.

    The guest runs on meanwhile, and is stopped only where its list changes faster
    than it can be read.
    """
    with attached(target) as machine:
        kernel = find_kernel(machine)
        tasks = read_list(machine, lambda: list_tasks(kernel, threads))
    if as_json:
        print_json({"tasks": [_facts(task) for task in tasks], "damage": tasks.damage})
        return
    columns = {"PID": True, "TID": True, "PPID": True, "UID": True, "S": False, "CPU": True}
    if not threads:
        del columns["TID"]
    rows = []
    for task, depth in _ordered(tasks, tree):
        facts = _facts(task)
        keys = {"S": "state", "PPID": "parent"}
        row = [str(facts[keys.get(column, column.lower())]) for column in columns]
        name = f"[{task.comm}]" if task.kernel else task.comm
        rows.append([*row, "*" if task.running else "", "  " * depth + name])
    print_table({**columns, "RUN": False, "NAME": False}, rows)


def _facts(task: Task) -> dict[str, object]:
    return {
        "pid": task.pid,
        "tid": task.tid,
        "parent": task.parent,
        "comm": task.comm,
        "state": task.state,
        "cpu": task.cpu,
        "running": task.running,
        "kernel": task.kernel,
        "uid": task.uid,
    }


def _ordered(tasks: TaskList, tree: bool) -> list[tuple[Task, int]]:
    """The tasks with their depth. Whose parent is not listed stands at the top."""
    if not tree:
        return [(task, 0) for task in tasks]
    known = {task.pid for task in tasks}
    children: dict[int, list[Task]] = {}
    for task in tasks:
        children.setdefault(task.parent if task.parent in known else 0, []).append(task)
    ordered: list[tuple[Task, int]] = []
    done: set[int] = set()
    pending = [(task, 0) for task in reversed(children.get(0, []))]
    while pending:
        task, depth = pending.pop()
        ordered.append((task, depth))
        if task.pid not in done and task.pid and depth < _MAX_DEPTH:
            done.add(task.pid)
            pending += [(child, depth + 1) for child in reversed(children.get(task.pid, []))]
    shown = {task.tid for task, _ in ordered}
    return ordered + [(task, 0) for task in tasks if task.tid not in shown]
