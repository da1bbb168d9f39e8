"""GDB with no file at all: the kernel's symbols, and those of its modules, are served."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import pytest

from kvmgdb.demo.guest import GuestOptions
from kvmgdb.demo.kernel import Kernel
from tests.linux.probed import ProbedGuest
from tests.support.gdb import GdbError, GdbSession, gdb_batch
from tests.support.rsp import RawClient
from tests.support.server import KvmgdbServer

_MODULE_FILE = "/modules/1"
_MODULE = "loop"


@pytest.fixture(scope="module")
def modular_guest(linux_kernel: Kernel) -> Iterator[ProbedGuest]:
    """A guest that has modules, and can load them again."""
    options = GuestOptions(name="kvmgdb-modular", memory=320)
    guest = ProbedGuest(linux_kernel, options)
    yield guest
    guest.close()


@pytest.fixture
def modular_server(modular_guest: ProbedGuest) -> Iterator[KvmgdbServer]:
    with KvmgdbServer(str(modular_guest.pid)) as server:
        yield server
    assert modular_guest.linux.makes_progress(), "a test left the guest stopped or broken"


@pytest.fixture
def on_modular(gdb: GdbSession, modular_server: KvmgdbServer) -> Iterator[GdbSession]:
    """A GDB with no file that holds the guest."""
    gdb.connect(modular_server.address)
    yield gdb
    gdb.close()


def _libraries(gdb: GdbSession) -> dict[str, int]:
    """The modules that GDB has read symbols of, with the address of their code."""
    text = gdb.cli("info sharedlibrary")
    return {
        name: int(address, 16)
        for address, name in re.findall(r"^(0x\w+) .*target:/kvmgdb/(\w+)[.\d]*\.ko$", text, re.M)
    }


def test_symbols_without_a_file(gdb_path: str, modular_server: KvmgdbServer) -> None:
    output = gdb_batch(
        gdb_path,
        f"target remote {modular_server.address}",
        "break vfs_read",
        "continue",
        "backtrace",
        "info threads",
        "print &init_task",
        "x/i $pc",
    )
    text = output.text
    assert re.search(r'^Thread \d+ "vCPU (\d) \[\w.* pid \d+\]" hit Breakpoint 1', text, re.M), text
    assert re.search(r"^#0 .* in vfs_read|^#0 +vfs_read", text, re.M), text
    assert re.search(r"^#1 .* ksys_read", text, re.M), text
    assert "<init_task>" in text
    assert output.status == 0


def test_a_function_of_the_guest_is_called(gdb_path: str, modular_server: KvmgdbServer) -> None:
    """GDB restores all registers afterwards, those too that only it could not change."""
    output = gdb_batch(
        gdb_path,
        f"target remote {modular_server.address}",
        "break vfs_read",
        "continue",
        "delete",
        "info registers general",
        "print (int)int_sqrt(144)",
        "info registers general",
        "backtrace 1",
    )
    text = output.text
    before, called, after = text.partition("$1 = 12")
    assert called, text
    registers = re.compile(r"^(r\w+|eflags) +(0x\w+)", re.M)
    assert len(registers.findall(before)) > 16, text
    assert registers.findall(before) == registers.findall(after)
    assert re.search(r"^#0 .*vfs_read", after, re.M), text
    assert output.status == 0


def test_addresses_are_the_guests_own(
    gdb: GdbSession, modular_guest: ProbedGuest, modular_server: KvmgdbServer
) -> None:
    names = ("vfs_read", "init_task", "jiffies_64", "loop_add", "linux_banner")
    wanted = {name: modular_guest.linux.symbol(name) for name in names}
    gdb.connect(modular_server.address)
    for name, place in wanted.items():
        assert gdb.integer(f"&{name}") == place, name
    assert _libraries(gdb).keys() == {"crc7", "dummy", "loop"}
    gdb.close()


def test_break_in_a_module_that_is_loaded_later(
    on_modular: GdbSession, modular_guest: ProbedGuest
) -> None:
    linux = modular_guest.linux
    assert _MODULE in _libraries(on_modular)

    def in_guest(action: str) -> threading.Thread:
        """Does it in the guest, whose answer waits until GDB lets it run."""
        if action == "load":
            worker = threading.Thread(target=linux.load_module, args=(_MODULE_FILE, 180.0))
        else:
            worker = threading.Thread(target=linux.unload_module, args=(_MODULE, 180.0))
        worker.start()
        return worker

    on_modular.cli("break loop_exit")
    worker = in_guest("unload")
    assert on_modular.run_to_stop()["frame"]["func"] == "loop_exit"
    assert _MODULE in _libraries(on_modular)
    on_modular.cli("delete")
    on_modular.resume()
    worker.join(180)
    on_modular.interrupt()
    assert _MODULE not in _libraries(on_modular)

    on_modular.cli("set breakpoint pending on")
    assert "pending" in on_modular.cli("break loop_add")
    worker = in_guest("load")
    stop = on_modular.run_to_stop()
    assert stop["reason"] == "breakpoint-hit"
    assert stop["frame"]["func"] == "loop_add"
    # Through the module's init code, which has symbols and frames while it is there.
    callers = re.findall(r" in (\w+)", on_modular.cli("backtrace"))
    assert {"loop_init", "do_one_initcall", "do_init_module", "do_syscall_64"} <= set(callers)
    where = _libraries(on_modular)[_MODULE]
    assert where <= on_modular.integer("$pc") < where + 0x10000
    # loop_init comes back after it has added its eight devices.
    on_modular.cli("delete")
    on_modular.resume()
    worker.join(180)
    assert not worker.is_alive()
    on_modular.interrupt()


def test_sleeping_tasks_are_threads(on_modular: GdbSession, modular_guest: ProbedGuest) -> None:
    gdb = on_modular
    assert "kthreadd" not in gdb.cli("info threads")
    count = re.match(r"(\d+) sleeping tasks are threads", gdb.cli("monitor tasks on"))
    assert count
    threads = re.findall(
        r'^[* ] +(\d+) +Thread 1\.(\d+) "(.+) pid (\d+)', gdb.cli("info threads"), re.M
    )
    numbers = {name: int(number) for number, _, name, _ in threads}
    assert len(threads) == 2 + int(count[1])
    for _, thread, name, pid in threads:
        assert name.startswith("vCPU") or int(thread) == 1_000_000 + int(pid)
    # Every one unwinds to where a task begins, or to user mode.
    shown = gdb.cli("thread apply all -q bt -1")
    ends = re.findall(r"^#\d+ +(?:0x\w+ in )?(\S+)", shown, re.M)
    assert len(ends) >= int(count[1])
    begins = ("ret_from_fork", "secondary_startup_64", "??")
    assert all(end.startswith(begins) for end in ends), ends
    gdb.cli(f"thread {numbers['kthreadd']}")
    assert "kthreadd" in gdb.cli("backtrace")
    assert gdb.value("$rax") == "<unavailable>"
    assert gdb.value("$cr3") == "<unavailable>"
    assert gdb.integer("$rsp") >= 0xFFFF800000000000
    before = gdb.integer("$pc")
    with pytest.raises(GdbError):
        gdb.cli("set var $rbx = 1")
    assert gdb.integer("$pc") == before
    # A task is not stepped, and neither is the guest let go.
    assert gdb.run_to_stop("-exec-step-instruction")["reason"] == "signal-received"
    gdb.cli(f"thread {numbers['kthreadd']}")
    gdb.cli("break vfs_read")
    assert gdb.run_to_stop()["frame"]["func"] == "vfs_read"
    gdb.cli("delete")
    gdb.cli("monitor tasks off")
    assert gdb.cli("info threads").count(" pid ") == 2
    assert "usage" in gdb.cli("monitor tasks maybe")


def test_nothing_stays_planted(modular_guest: ProbedGuest, modular_server: KvmgdbServer) -> None:
    """The server's own breakpoints are there while somebody follows the modules."""
    with RawClient(modular_server.address) as client, RawClient(modular_server.address) as other:
        client.request(b"qSupported:multiprocess+;exec-events+")
        other.request(b"qSupported:multiprocess+")
        client.request(b"qXfer:libraries:read::0,1000")
        client.close()
        modular_server.wait_printed("debugger 1 .* is gone")
        assert other.monitor("debuggers").count("debugger") == 1
    linux = modular_guest.linux
    linux.unload_module(_MODULE)
    linux.load_module(_MODULE_FILE)
    assert linux.makes_progress()
