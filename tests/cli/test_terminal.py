"""What the command line prints, wherever it prints it, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kvmgdb.cli import cli
from kvmgdb.printable import printable, printable_lines
from tests.support.qemu import Qemu
from tests.support.require import requires
from tests.support.server import KVMGDB, ROOT, kvmgdb

# Escape sequences, markup and an emoji's name, as whoever starts a VM may choose them.
_NAME = "\x1b[31mred\x9b2J\u202e [/bold] [blue] :tiger: \u00fc"
_HARMLESS = "?[31mred?2J? [/bold] [blue] :tiger: \u00fc"


@pytest.fixture(scope="module")
def named() -> Iterator[Qemu]:
    """A machine with that name, which executes nothing."""
    with Qemu("-accel", "tcg", "-S", "-m", "16M", "-name", _NAME) as qemu:
        yield qemu


def test_a_line_stays_one_line() -> None:
    assert printable("two\nlines\tand \x07") == "two?lines?and ?"
    assert printable_lines("two\nlines\tand \x1b]0;title\x07") == "two\nlines\tand ?]0;title?"


@requires("qemu")
@pytest.mark.parametrize("command", ["list", "info"])
def test_a_machine_cannot_write_to_the_terminal_by_its_name(named: Qemu, command: str) -> None:
    result = kvmgdb(command, *(() if command == "list" else (str(named.pid),)))
    assert result.returncode == 0, result.stderr
    assert _HARMLESS in result.stdout
    assert "\x1b" not in result.stdout


@requires("qemu")
def test_programs_get_the_name_as_it_is(named: Qemu) -> None:
    facts = json.loads(kvmgdb("info", str(named.pid), "--json").stdout)
    assert facts["machine"]["name"] == _NAME


@requires("qemu")
def test_a_character_set_without_the_letters_of_a_name_is_no_error(named: Qemu) -> None:
    result = subprocess.run(
        [*KVMGDB, "info", str(named.pid)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "iso8859-5"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "\\xfc" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [("-smp", "\u00b2"), ("-smp", "9" * 5000), ("-m", "9" * 400), ("-m", "\u0663G")],
    ids=["no ASCII digit", "many vCPUs", "much memory", "a digit of another script"],
)
def test_a_process_that_calls_itself_qemu_does_not_end_the_list(arguments: tuple[str, ...]) -> None:
    code = "import time; print('up', flush=True); time.sleep(300)"
    with subprocess.Popen(
        ["qemu-system-x86_64", "-c", code, *arguments],
        executable=sys.executable,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            result = kvmgdb("list", "--json")
        finally:
            process.kill()
    assert result.returncode == 0, result.stderr
    assert process.pid in [each["pid"] for each in json.loads(result.stdout)]


def test_a_number_beyond_all_bounds_is_no_process() -> None:
    result = kvmgdb("info", "9" * 5000)
    assert result.returncode == 1
    assert "no virtual machine has the name" in result.stderr


@pytest.mark.parametrize("arguments", [("list",), ("--help",)])
def test_an_output_that_is_full_is_named(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*KVMGDB, *arguments], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=120
        )
    assert result.returncode == 1
    expected = b"kvmgdb: the output cannot be written: No space left on device\n"
    assert result.stderr == expected


def test_a_reader_that_leaves_is_no_error_to_speak_of() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        result = subprocess.run(
            [*KVMGDB, "list"], cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, timeout=120
        )
    assert (result.returncode, result.stderr) == (1, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_without_a_word(tmp_path: Path, number: signal.Signals) -> None:
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.bind(str(tmp_path / "silent"))
        monitor.listen()
        monitor.settimeout(120)
        command = [*KVMGDB, "info", f"qmp:{tmp_path}/silent"]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                connection, _ = monitor.accept()  # the command waits for a greeting
                process.send_signal(number)
                output, errors = process.communicate(timeout=120)
                connection.close()
            finally:
                process.kill()
    assert (process.returncode, output, errors.strip()) == (128 + number, b"", b"")


@pytest.mark.parametrize("name", cli.list_commands(click.Context(cli)))
def test_a_command_says_what_it_does_and_gives_an_example(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.help
    assert f"kvmgdb {name}" in (command.epilog or "")
    assert not command.get_short_help_str(limit=60).endswith("...")
