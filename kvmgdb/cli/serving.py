"""What ``serve``, ``gdb`` and ``run`` share: a server in the foreground."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from kvmgdb.cli.terminal import note
from kvmgdb.machine.interface import Machine, MachineInfo
from kvmgdb.machine.target import Target
from kvmgdb.rsp.debuggee import Debuggee
from kvmgdb.rsp.server import ListenAddress, Server

DEFAULT_LISTEN = "127.0.0.1:1234"


def describe(info: MachineInfo) -> str:
    """One line about a machine."""
    name = f" {info.name}" if info.name else ""
    pid = f" (PID {info.pid})" if info.pid is not None else ""
    # Firmware makes parts of RAM read-only: they count, a flash chip does not.
    writable = {region.name for region in info.regions if not region.read_only}
    ram = sum(region.size for region in info.regions if region.name in writable)
    memory = f", {ram >> 20} MiB" if ram else ""
    accelerator = f", {info.accelerator}" if info.accelerator != "unknown" else ""
    plural = "" if info.vcpus == 1 else "s"
    vcpus = f"{info.vcpus} vCPU{plural}"
    return f"{info.backend}{name}{pid}: {vcpus}{memory}{accelerator}, {info.state}"


def open_for_check(target: Target) -> Machine | None:
    """Attaches once, so that a wrong target fails now and not at the first GDB.

    The machine is let go again, unless attaching stops the guest: then it stays
    attached until a debugger has come and gone. Raises KvmgdbError.
    """
    machine = target.open()
    info = machine.info()
    note(describe(info))
    for remark in info.notes:
        note(f"note: {remark}")
    if target.stops_guest:
        note("the stub stopped the guest when kvmgdb connected; it runs when a debugger lets it")
        return machine
    machine.close()
    return None


def serve(
    debuggee: Debuggee,
    listen: ListenAddress,
    while_serving: Callable[[Server], Awaitable[int]] | None = None,
) -> int:
    """Serves until a signal, `monitor quit`, or the end of ``while_serving``,
    whose result is the exit status."""
    return asyncio.run(_serve(debuggee, listen, while_serving))


async def _serve(
    debuggee: Debuggee,
    listen: ListenAddress,
    while_serving: Callable[[Server], Awaitable[int]] | None,
) -> int:
    server = Server(debuggee, listen)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    try:
        await server.start()
    except BaseException:
        debuggee.close()
        raise
    if while_serving is None:
        if server.address is not None:
            note(f"waiting for GDB: {connect_hint(server)}")
        await server.serve()
        return 0
    serving = asyncio.ensure_future(server.serve())
    try:
        return await while_serving(server)
    finally:
        server.stop()
        await serving


def connect_hint(server: Server) -> str:
    """The command that connects a GDB to the server."""
    address = server.address
    if address is None:
        return ""
    if address.path:
        return f"gdb -ex 'target remote {address.path}'"
    host = "" if address.host == "127.0.0.1" else address.host
    return f"gdb -ex 'target remote {host}:{address.port}'"
