"""``kvmgdb report``: what a recording says."""

from __future__ import annotations

from pathlib import Path

import click

from kvmgdb.cli.guest import print_json
from kvmgdb.cli.selection import view_of, view_options
from kvmgdb.cli.terminal import note, print_table
from kvmgdb.errors import NotFoundError, UsageError
from kvmgdb.profiler import formats
from kvmgdb.profiler.compare import Change, compare
from kvmgdb.profiler.recording import Recording
from kvmgdb.profiler.storage import load
from kvmgdb.profiler.summary import Summary
from kvmgdb.profiler.tree import CallTree, Function, Line, Node, place, printed
from kvmgdb.profiler.view import View

_FILE = click.Path(path_type=Path)


@click.command(
    short_help="Print what a recording says, or convert it.",
    epilog="Example: kvmgdb report profile.kvmprof --tree",
)
@click.argument("file", type=_FILE)
@click.option("--tree", "as_tree", is_flag=True, help="The call tree, not a list of functions.")
@click.option("--callers", metavar="FUNCTION", help="Who called this function, and from where.")
@click.option("--diff", "old", type=_FILE, metavar="OLD", help="Compare with an older recording.")
@click.option("--sort", type=click.Choice(["self", "total"]), default="self", show_default=True)
@click.option("--limit", type=click.IntRange(1), default=30, show_default=True, help="Functions.")
@click.option(
    "--min",
    "least",
    type=click.FloatRange(0, 100),
    default=1.0,
    show_default=True,
    help="Percent that a call needs to be in a tree.",
)
@view_options
@click.option("-o", "--output", type=_FILE, help="Write it in another format, to this file.")
@click.option("--format", "form", type=click.Choice(formats.NAMES), help="The output's format.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def report(
    file: Path,
    as_tree: bool,
    callers: str | None,
    old: Path | None,
    sort: str,
    limit: int,
    least: float,
    by: tuple[str, ...],
    idle: bool,
    task: str | None,
    vcpu: int | None,
    output: Path | None,
    form: str | None,
    as_json: bool,
) -> None:
    """Print what a recording says: which functions took the time, or with --tree and
    --callers in which calls; or write it in another format with -o.

    FILE is a recording as `kvmgdb profile` writes it (.kvmprof).
    """
    if sum((as_tree, callers is not None, old is not None, output is not None)) > 1:
        raise UsageError("--tree, --callers, --diff and --output exclude each other")
    if output is not None and as_json:
        raise UsageError("--json is for what is printed; --format says how a file is written")
    if form is not None and output is None:
        raise UsageError("--format needs --output")
    view = view_of(by, idle, task, vcpu)
    if output is not None:
        name = formats.format_of(output, form)
        formats.write(load(file), output, name, view)
        return
    recording = load(file)
    if old is not None:
        _print_changes(load(old), recording, view, limit, as_json)
        return
    tree = _tree(recording, view)
    facts = _facts(recording, tree)
    if as_tree or callers is not None:
        top = tree.root if callers is None else _callers(tree, callers)
        lines = printed(top, least / 100 * tree.root.total)
        if as_json:
            print_json({**facts, "tree": [_node_facts(line) for line in lines]})
            return
        _print_summary(recording)
        _print_tree(lines, tree.root.total)
        return
    functions = sorted(
        tree.shares().items(),
        key=lambda item: (
            -(item[1].own if sort == "self" else item[1].total),
            -item[1].total,
            item[0],
        ),
    )
    if as_json:
        found = [
            {**_function_facts(function), "self": share.own, "total": share.total}
            for function, share in functions
        ]
        print_json({**facts, "functions": found})
        return
    _print_summary(recording)
    _print_functions(
        [(function, share.own, share.total) for function, share in functions],
        tree.root.total,
        limit,
    )


def _tree(recording: Recording, view: View) -> CallTree:
    tree = CallTree(recording, view)
    tree.add()
    return tree


def _facts(recording: Recording, tree: CallTree) -> dict[str, object]:
    return {"summary": Summary.of(recording).facts(), "shown": tree.root.total}


def _print_summary(recording: Recording) -> None:
    for line in Summary.of(recording).lines():
        click.echo(line)
    click.echo()


def _percent(count: float, all_: float) -> str:
    return f"{100 * count / all_:.2f} %" if all_ else "-"


def _function_facts(function: Function) -> dict[str, object]:
    return {
        "function": function.label,
        "module": function.module,
        "kind": function.kind.name.lower(),
    }


# ---- functions --------------------------------------------------------------


def _print_functions(functions: list[tuple[Function, int, int]], all_: int, limit: int) -> None:
    if not functions:
        note("no sample fits; --idle counts those of halted vCPUs too")
        return
    rows = [
        [_percent(own, all_), _percent(total, all_), str(own), function.label, function.module]
        for function, own, total in functions[:limit]
    ]
    print_table(
        {"SELF": True, "TOTAL": True, "SAMPLES": True, "FUNCTION": False, "IN": False}, rows
    )
    if len(functions) > limit:
        click.echo(f"... and {len(functions) - limit} functions more")


# ---- trees ------------------------------------------------------------------


def _callers(tree: CallTree, name: str) -> Node:
    """The tree of those who called all functions of that name."""
    found = [function for function in tree.shares() if name in _names(function)]
    if not found:
        raise NotFoundError(
            f"no function {name} is in what was recorded", "`kvmgdb report FILE` lists functions"
        )
    top = Node(tree.root.function, None)
    for function in found:
        node = tree.callers(function)
        node.parent = top
        top.children[function] = node
        top.total += node.total
    return top


def _names(function: Function) -> tuple[str, str]:
    return function.label, function.label.removesuffix(f" [{function.module}]")


def _node_facts(line: Line) -> dict[str, object]:
    node = line.node
    facts = _function_facts(node.function)
    return {"depth": line.depth, **facts, "self": node.own, "total": node.total}


def _print_tree(lines: list[Line], all_: int) -> None:
    if not lines:
        note("no call has that many samples; --min makes it less")
    for node, _, column in lines:
        indent = "  " * column
        label = f"{node.function.label}{place(node)}"
        click.echo(f"{_percent(node.total, all_):>9}  {indent}{label}")


# ---- two recordings ---------------------------------------------------------


def _print_changes(old: Recording, new: Recording, view: View, limit: int, as_json: bool) -> None:
    trees = _tree(old, view), _tree(new, view)
    changes = compare(*trees)
    if as_json:
        print_json(
            {
                "old": _facts(old, trees[0]),
                "new": _facts(new, trees[1]),
                "functions": [_change_facts(change) for change in changes],
            }
        )
        return
    for title, recording, tree in (("old", old, trees[0]), ("new", new, trees[1])):
        click.echo(f"{title}: {Summary.of(recording).lines()[0]}")
        if not tree.root.total:
            raise NotFoundError(
                f"no sample of the {title} recording fits: there is nothing to compare"
            )
    click.echo()
    real = [change for change in changes if not change.is_noise]
    rows = [
        [
            f"{100 * change.old_own:.2f} %",
            f"{100 * change.new_own:.2f} %",
            f"{100 * change.own:+.2f}",
            f"{100 * change.total:+.2f}",
            change.function.label,
            change.function.module,
        ]
        for change in real[:limit]
    ]
    if rows:
        titles = ("OLD SELF", "NEW SELF", "SELF", "TOTAL")
        print_table({**dict.fromkeys(titles, True), "FUNCTION": False, "IN": False}, rows)
        click.echo()
    if len(real) > limit:
        click.echo(f"... and {len(real) - limit} functions more")
    click.echo(
        f"{len(changes) - len(real)} of {len(changes)} functions differ by no more than "
        "chance does (95 %)"
    )


def _change_facts(change: Change) -> dict[str, object]:
    return {
        **_function_facts(change.function),
        "old_self": change.old_own,
        "new_self": change.new_own,
        "old_total": change.old_total,
        "new_total": change.new_total,
        "noise": change.is_noise,
    }
