"""A stock Linux kernel under KVM, debugged by real GDBs through ``kvmgdb serve
PID``: its QEMU has no stub, and no monitor that anybody but the test can reach."""

from __future__ import annotations

import itertools
import re
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvmgdb.demo.kernel import Kernel
from tests.kvm.adopted import LinuxUnderKvm, linux_under_kvm
from tests.support.gdb import GdbError, GdbSession
from tests.support.polling import wait_for
from tests.support.require import requires
from tests.support.server import KvmgdbServer

pytestmark = requires("kvm", "qemu", "cc")

_VCPUS = 2
_TRAP_FLAG = 1 << 8
_LOCAL_TIMER_VECTOR = 0xEC  # arch/x86/include/asm/irq_vectors.h
_GATE_SIZE = 16
_KERNEL_CS, _USER_CS = 0x10, 0x33  # arch/x86/include/asm/segment.h
_TICK = "asm_sysvec_apic_timer_interrupt"
_SLOW = 90.0  # seconds: a KVM that interprets guest code watches memory by stepping


class _Shared:
    """The guest that tests share; another takes its place when one has broken it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._stack = ExitStack()
        self._guest: LinuxUnderKvm | None = None

    def get(self) -> LinuxUnderKvm:
        if self._guest is None:
            self._guest = self._stack.enter_context(linux_under_kvm(self._kernel))
        return self._guest

    def drop(self) -> None:
        self._guest = None
        self._stack.close()


@pytest.fixture(scope="module")
def _shared(linux_kernel: Kernel) -> Iterator[_Shared]:
    shared = _Shared(linux_kernel)
    yield shared
    shared.drop()


@pytest.fixture
def code(_shared: _Shared) -> bytes:
    """The entry of the timer interrupt before a debugger came, by QEMU."""
    guest = _shared.get()
    return guest.memory(guest.symbol(_TICK), 64)


@pytest.fixture
def linux(_shared: _Shared, code: bytes) -> Iterator[LinuxUnderKvm]:
    """The guest; after each test it computes on, and nothing of ours is in it."""
    guest = _shared.get()
    yield guest
    try:
        guest.assert_progress()
        assert guest.memory(guest.symbol(_TICK), len(code)) == code
        for vcpu in range(_VCPUS):
            assert guest.register("DR7", vcpu) == 0x400
            assert [guest.register(f"DR{i}", vcpu) for i in range(4)] == [0] * 4
            assert not guest.register("RFL", vcpu) & _TRAP_FLAG
    except BaseException:
        _shared.drop()
        raise


@pytest.fixture
def attached(gdb: GdbSession, linux: LinuxUnderKvm) -> Iterator[GdbSession]:
    """A GDB for which the guest is stopped; it detaches at the end."""
    with KvmgdbServer(str(linux.pid)) as server:
        gdb.connect(server.address)
        yield gdb
        gdb.cli("detach")


def _read(gdb: GdbSession, gva: int, length: int) -> bytes:
    blocks = gdb.mi(f"-data-read-memory-bytes {gva:#x} {length}")["memory"]
    assert len(blocks) == 1
    return bytes.fromhex(blocks[0]["contents"])


def _gate(gdb: GdbSession, vector: int) -> int:
    """Where an IDT entry leads (SDM volume 3, "64-Bit Mode IDT")."""
    where = gdb.integer("$idtr_base") + _GATE_SIZE * vector
    low, selector, _, kind, middle, high, _ = struct.unpack(
        "<HHBBHII", _read(gdb, where, _GATE_SIZE)
    )
    assert selector == _KERNEL_CS
    assert kind & 0x9F == 0x8E  # present, an interrupt gate
    return int(high << 32 | middle << 16 | low)


def test_registers_are_those_that_qemu_shows(gdb: GdbSession, linux: LinuxUnderKvm) -> None:
    """Of a paused guest, so that both ask about the same moment."""
    names = {"rip": "RIP", "rsp": "RSP", "cr0": "CR0", "cr3": "CR3", "cr4": "CR4", "efer": "EFER"}
    linux.qemu.ask("stop")
    try:
        expected = [
            {name: linux.register(shown, vcpu) for name, shown in names.items()}
            for vcpu in range(_VCPUS)
        ]
        with KvmgdbServer(str(linux.pid)) as server:
            gdb.connect(server.address)
            threads = gdb.cli("info threads")
            assert re.findall(r"vCPU (\d)", threads) == ["0", "1"]
            for vcpu in range(_VCPUS):
                gdb.cli(f"thread {vcpu + 1}")
                assert {name: gdb.integer(f"${name}") for name in names} == expected[vcpu]
            gdb.cli("detach")
    finally:
        linux.qemu.ask("cont")


def test_registers_are_those_of_a_kernel_in_long_mode(
    attached: GdbSession, linux: LinuxUnderKvm
) -> None:
    for vcpu in range(_VCPUS):
        attached.cli(f"thread {vcpu + 1}")
        assert attached.integer("$cr0") & 0x80000001 == 0x80000001  # PG, PE
        assert attached.integer("$cr4") & 0x20 == 0x20  # PAE
        assert attached.integer("$efer") & 0xD01 == 0xD01  # NXE, LMA, LME, SCE
        pc, privilege = attached.integer("$pc"), attached.integer("$cs") & 3
        if privilege == 0:
            assert linux.symbol("_text") <= pc < linux.symbol("_end")
        else:
            assert privilege == 3
            assert 0x400000 <= pc < 0x500000  # where a static program is linked


def _image_version(vmlinuz: Path) -> tuple[str, str]:
    """What a bzImage says of itself: "RELEASE (BUILDER)" and the version behind it
    (Documentation/arch/x86/boot.rst, kernel_version)."""
    data = vmlinuz.read_bytes()
    at = 0x200 + int(struct.unpack_from("<H", data, 0x20E)[0])
    builder, end, version = data[at : data.index(b"\0", at)].decode().partition(") ")
    return builder + end.strip(), version


def test_banner_is_that_of_the_kernel_image(
    attached: GdbSession, linux: LinuxUnderKvm, linux_kernel: Kernel
) -> None:
    pattern = ", ".join(f"'{letter}'" for letter in f"Linux version {linux_kernel.release}")
    printed = attached.cli(
        f"find /b {linux.symbol('_text'):#x}, {linux.symbol('_end'):#x}, {pattern}"
    )
    found = [int(word, 16) for word in re.findall(r"^(0x[0-9a-f]+)", printed, re.MULTILINE)]
    assert linux.symbol("linux_banner") in found, printed

    banner = _read(attached, linux.symbol("linux_banner"), 512).split(b"\0")[0].decode()
    builder, version = _image_version(linux_kernel.vmlinuz)
    config = (linux_kernel.vmlinuz.parent / "config").read_text()
    compiler = re.search(r'^CONFIG_CC_VERSION_TEXT="(.*)"$', config, re.MULTILINE)
    assert compiler
    start, end = f"Linux version {builder} ({compiler[1]}, ", f") {version}\n"
    assert banner.startswith(start)
    assert banner.endswith(end)
    assert re.fullmatch(r"GNU ld [^#]*", banner[len(start) : -len(end)])


def test_idt_leads_into_the_kernel(attached: GdbSession, linux: LinuxUnderKvm) -> None:
    for vector in (0, 1, 3, 13, 14, _LOCAL_TIMER_VECTOR):
        handler = _gate(attached, vector)
        assert linux.symbol("_text") <= handler < linux.symbol("_end"), vector
    assert _gate(attached, _LOCAL_TIMER_VECTOR) == linux.symbol(_TICK)


def _expect_tick(gdb: GdbSession, stop: dict[str, object], tick: int) -> int:
    """A stop at the timer interrupt's entry; the vCPU."""
    assert stop["reason"] == "breakpoint-hit", stop
    assert gdb.integer("$pc") == tick
    # It has just interrupted something: the frame that the processor pushed.
    rip, cs = (gdb.integer(f"*(unsigned long *) ($rsp + {offset})") for offset in (0, 8))
    assert cs in (_KERNEL_CS, _USER_CS)
    assert rip >> 63 == (cs == _KERNEL_CS)
    return int(str(stop["thread-id"])) - 1


def test_a_function_of_the_kernel_is_called(attached: GdbSession) -> None:
    attached.cli("break sysvec_apic_timer_interrupt")
    assert attached.run_to_stop("-exec-continue")["reason"] == "breakpoint-hit"
    attached.cli("delete")
    before = attached.cli("info registers general")
    assert attached.integer("(int)int_sqrt(144)") == 12
    assert attached.cli("info registers general") == before


def _step_through(gdb: GdbSession) -> None:
    """Steps as far as the disassembly says; another vCPU may be interrupted
    meanwhile, which is a stop of its own."""
    stepped = 0
    for _ in range(200):
        listing = gdb.cli("x/2i $pc")
        following = int(re.findall(r"^[ =>]*(0x[0-9a-f]+)", listing, re.MULTILINE)[1], 16)
        stop = gdb.run_to_stop("-exec-step-instruction")
        if stop["reason"] == "end-stepping-range":
            assert gdb.integer("$pc") == following, listing
            stepped += 1
        if stepped == 2:  # clac, which is a nop here, and cld
            return
    raise AssertionError("GDB never steps")


@pytest.mark.parametrize("command", ["break", "hbreak"])
def test_breakpoint_on_the_timer_interrupt(attached: GdbSession, code: bytes, command: str) -> None:
    tick = _gate(attached, _LOCAL_TIMER_VECTOR)
    attached.cli(f"{command} *{tick:#x}")
    hit: set[int] = set()
    for number in itertools.count():
        hit.add(_expect_tick(attached, attached.run_to_stop(), tick))
        if number >= 7 and hit == set(range(_VCPUS)):
            break
    assert _read(attached, tick, len(code)) == code  # what we planted is invisible
    _step_through(attached)
    attached.cli("delete")


def _writer(gdb: GdbSession, gva: int) -> bool:
    """Whether the instruction that ends at the PC names this address."""
    pc = gdb.integer("$pc")
    for length in range(2, 16):
        first, second = gdb.cli(f"x/2i {pc - length:#x}").splitlines()[:2]
        if f"{gva:#x}" in first and re.search(rf"{pc:#x}( <.*>)?:", second):
            return True
    return False


def test_watchpoint_on_jiffies(attached: GdbSession, linux: LinuxUnderKvm) -> None:
    jiffies = linux.symbol("jiffies_64")
    attached.cli(f"watch *(unsigned long *) {jiffies:#x}")
    for _ in range(3):
        before = attached.integer(f"*(unsigned long *) {jiffies:#x}")
        stop = attached.run_to_stop(seconds=_SLOW)
        assert stop["reason"] == "watchpoint-trigger", stop
        value = stop["value"]
        assert isinstance(value, dict)
        assert int(value["old"]) == before
        assert before < int(value["new"]) == attached.integer(f"*(unsigned long *) {jiffies:#x}")
        assert _writer(attached, jiffies), attached.cli("x/4i $pc - 16")
    attached.cli("delete")


def _select_vcpu_in_user_mode(gdb: GdbSession) -> None:
    for _ in range(200):
        for vcpu in range(_VCPUS):
            gdb.cli(f"thread {vcpu + 1}")
            if gdb.integer("$cs") == _USER_CS:
                return
        gdb.resume()
        time.sleep(0.01)
        gdb.interrupt()
    raise AssertionError("no vCPU is ever in user mode")


def test_watching_leaves_no_trap_flag_in_the_guest(
    attached: GdbSession, linux: LinuxUnderKvm
) -> None:
    """Where KVM watches by stepping, the flag that steps a vCPU must not get into
    what an interrupt saves of the program that it interrupts: when that goes on
    it would take a debug exception of nobody's, and die of it."""
    for _ in range(3):
        _select_vcpu_in_user_mode(attached)
        # Where the processor saves them (SDM volume 3, "Stack Switching in 64-Bit
        # Mode"): RIP, CS, RFLAGS, RSP, SS below RSP0 of the task state.
        top = attached.integer("*(unsigned long *) ($tr_base + 4)")
        attached.cli(f"watch *(unsigned long *) {linux.symbol('jiffies_64'):#x}")
        assert attached.run_to_stop(seconds=_SLOW)["reason"] == "watchpoint-trigger"
        attached.cli("delete")
        assert attached.integer(f"*(unsigned long *) {top - 32:#x}") == _USER_CS
        assert not attached.integer(f"*(unsigned long *) {top - 24:#x}") & _TRAP_FLAG


def _steps_in_user_mode(gdb: GdbSession) -> bool:
    """Whether the step of the selected vCPU, which is in user mode, ends there. It may
    end at the entry of an interrupt that had been on its way already."""
    thread = gdb.cli("thread")
    gdb.run_to_stop("-exec-step-instruction")
    assert gdb.cli("thread") == thread
    if gdb.integer("$cs") == _USER_CS:
        assert "TF" not in gdb.value("$eflags")
        return True
    assert gdb.integer("*(unsigned long *) ($sp + 8)") == _USER_CS
    assert not gdb.integer("*(unsigned long *) ($sp + 16)") & _TRAP_FLAG
    return False


def test_step_a_program(attached: GdbSession) -> None:
    """An interpreting KVM gives the exception of each such step to the guest."""
    passed: list[int] = []
    stays = False
    for _ in range(60):
        if not stays:
            _select_vcpu_in_user_mode(attached)
        stays = _steps_in_user_mode(attached)
        if stays:
            passed.append(attached.integer("$pc"))
    assert not passed or max(passed) - min(passed) < 4096  # its loop


def test_step_from_the_kernel_into_a_program(attached: GdbSession) -> None:
    """... and forgets that it steps where `iretq` returns to a program."""
    attached.cli("set scheduler-locking step")
    attached.cli("hbreak *native_irq_return_iret")
    attached.cli("condition $bpnum *(unsigned long *) ($sp + 8) == 0x33")
    for _ in range(8):
        attached.run_to_stop(seconds=_SLOW)
        code = attached.cli("x/i $pc")
        if "iretq" not in code:
            attached.run_to_stop("-exec-step-instruction")
        attached.run_to_stop("-exec-step-instruction")
        assert attached.integer("$cs") == _USER_CS, code
        _steps_in_user_mode(attached)
    attached.cli("delete")


@pytest.mark.parametrize("command", ["break", "hbreak"])
def test_breakpoint_in_a_program(attached: GdbSession, command: str) -> None:
    """Where the guest's kernel would get the hit it is refused, and says why."""
    _select_vcpu_in_user_mode(attached)
    attached.run_to_stop("-exec-step-instruction")
    behind = attached.integer("$pc")
    attached.run_to_stop("-exec-step-instruction")
    attached.cli("set breakpoint always-inserted on")
    refusal = ""
    try:
        attached.cli(f"{command} *{behind:#x}")
    except GdbError as error:
        refusal = str(error)
    if refusal:
        assert re.search(r"(?i)cannot insert (hardware )?breakpoint", refusal)
        assert "one would die of a breakpoint" in attached.cli("monitor info")
    else:
        attached.run_to_stop()
        assert attached.integer("$pc") == behind
    attached.cli("delete")


def test_continue_and_interrupt(attached: GdbSession, linux: LinuxUnderKvm) -> None:
    jiffies = f"*(unsigned long *) {linux.symbol('jiffies_64'):#x}"
    for _ in range(5):
        before = attached.integer(jiffies)

        def has_run(before: int = before) -> bool:
            attached.resume()
            time.sleep(0.2)
            assert attached.interrupt()["signal-name"] == "SIGINT"
            return attached.integer(jiffies) > before

        wait_for("the guest's clock goes on", has_run)


def test_sleeping_tasks_show_nothing_that_is_planted(
    attached: GdbSession, linux: LinuxUnderKvm, code: bytes
) -> None:
    tick = linux.symbol(_TICK)
    attached.cli("monitor tasks on")
    assert '"kthreadd pid 2"' in attached.cli("info threads")
    assert "Thread 1.1000" in attached.cli(f"thread {_VCPUS + 1}")
    assert _read(attached, tick, len(code)) == code
    attached.cli("set breakpoint always-inserted on")
    attached.cli(f"break *{tick:#x}")
    attached.cli("maintenance flush dcache")
    assert _read(attached, tick, len(code)) == code
    attached.cli("delete")
    attached.cli("monitor tasks off")


def test_reset_with_modules_followed(gdb: GdbSession, linux_kernel: Kernel, tmp_path: Path) -> None:
    """What kvmgdb itself has planted, to follow modules, is in nobody's way."""
    monitor = ("-qmp", f"unix:{tmp_path / 'qmp'},server=on,wait=off")
    with (
        linux_under_kvm(linux_kernel, monitor) as linux,
        KvmgdbServer(str(linux.pid)) as server,
    ):
        linux.qemu.ask("set-action", reboot="reset")  # it was started with -no-reboot
        gdb.connect(server.address)
        assert "first instruction" in gdb.cli("monitor reset")
        gdb.cli("maintenance flush register-cache")
        # SDM volume 3, 10.1.4: the first instruction.
        assert gdb.integer("$cs_base") + gdb.integer("$rip") & 0xFFFFFFFF == 0xFFFFFFF0
        gdb.cli("detach")
