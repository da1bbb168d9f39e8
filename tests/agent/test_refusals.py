"""What cannot be attached to is refused with its reason, and not touched; what
a filter or missing rights make harder still works, or is refused."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmgdb.errors import (
    AccessDeniedError,
    InvalidRangeError,
    KvmgdbError,
    TargetBusyError,
    TargetGoneError,
    TargetNotFoundError,
    TargetTimeoutError,
    UnsupportedError,
)
from kvmgdb.machine.agent import Agent, SeccompError
from tests.agent.footprint import Footprint
from tests.agent.vm import COMPUTE, NOBODY, STUCK, Program, Vm, wait_until
from tests.support.require import SYSTEM_GDB, requires

pytestmark = requires("kvm", "cc")
Start = Callable[..., Vm]


def refusal(pid: int, program: Path | None = None) -> KvmgdbError:
    with Agent(pid, program) as agent, pytest.raises(KvmgdbError) as caught:
        agent.attach()
    return caught.value


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def test_no_such_process() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert isinstance(refusal(process.pid), TargetGoneError)


def test_not_a_vmm(sleeper: subprocess.Popen[bytes]) -> None:
    assert isinstance(refusal(sleeper.pid), TargetNotFoundError)


@pytest.mark.parametrize(
    ("option", "kind"), [("twice", UnsupportedError), ("novcpu", TargetNotFoundError)]
)
def test_strange_vmms(program: Program, option: str, kind: type[KvmgdbError]) -> None:
    command = [str(program.vmm), str(program.guest), "1", option]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert isinstance(refusal(process.pid), kind)
        assert process.poll() is None
        process.kill()


def test_somebody_else_traces_it(start: Start) -> None:
    vm = start(1)
    with Agent(vm.pid) as first:
        first.attach()
        error = refusal(vm.pid)
        assert isinstance(error, TargetBusyError)
        assert str(first.process.pid) in str(error)
        first.stop()
        first.resume()
    vm.assert_progress()


@requires("gdb")
def test_a_debugger_traces_it(start: Start) -> None:
    """Named, so that a user knows what to end."""
    vm = start(1, "eintr")
    command = [SYSTEM_GDB, "-nx", "-q", "-p", str(vm.pid)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as gdb:
        try:
            traced = str(gdb.pid)
            wait_until(lambda: vm.status(vm.pid, "TracerPid") == traced, "GDB")
            error = refusal(vm.pid)
            assert isinstance(error, TargetBusyError)
            assert f"by process {gdb.pid} " in str(error)
            assert SYSTEM_GDB in str(error)
            assert gdb.poll() is None
        finally:
            assert gdb.stdin is not None
            gdb.stdin.write(b"detach\nquit\n")
            gdb.stdin.close()
            gdb.wait(60)
    vm.assert_progress()
    with Agent(vm.pid) as agent:
        agent.attach()


@requires("ia32")
def test_a_32_bit_vmm(program: Program) -> None:
    binary = program.vmm.with_name("vmm32")
    source = Path(__file__).parent / "guests" / "vmm32.c"
    flags = ["-m32", "-O1", "-ffreestanding", "-fno-pie", "-nostdlib", "-static", "-no-pie"]
    subprocess.run(["gcc", *flags, "-o", str(binary), str(source)], check=True)
    command = ["sh", "-c", f"exec {binary} 3<>/dev/kvm"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            error = refusal(process.pid)
            assert isinstance(error, UnsupportedError)
            assert "32-bit" in str(error)
            assert process.poll() is None
        finally:
            process.kill()


def test_exits_while_we_attach(program: Program) -> None:
    """At any moment of it: an error that says so, or an attachment that learns of it."""
    said = []
    for milliseconds in (0, 2, 5, 10, 20):
        vm = Vm.plain(program, 2, ["eintr"])
        try:
            with Agent(vm.pid) as agent:
                killer = threading.Timer(milliseconds / 1000, vm.process.kill)
                killer.start()
                try:
                    agent.attach()
                    assert select.select([agent.event_fd], [], [], 60.0)[0]
                    assert agent.shared.gone
                except (TargetGoneError, TargetNotFoundError, AccessDeniedError) as error:
                    said.append(error)
                finally:
                    killer.join()
        finally:
            vm.close()
    assert all(str(error) for error in said)


@pytest.fixture
def namespaced(program: Program) -> Iterator[Vm]:
    """The plain VMM in a PID namespace of its own, as a container's."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a PID namespace")
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    command += [str(program.vmm), str(program.guest), "2", "eintr"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as outer:
        assert outer.stdout is not None
        assert outer.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        yield Vm(_Adopted(int(children[0])), program, 2)
        outer.kill()


class _Adopted(subprocess.Popen[bytes]):
    """A process that is somebody else's child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode = None
        self.stdout = self.stdin = self.stderr = None

    def poll(self) -> int | None:
        return None if os.path.exists(f"/proc/{self.pid}") else 0


def test_another_pid_namespace(namespaced: Vm) -> None:
    _use(namespaced, Agent(namespaced.pid))


def test_from_inside_a_pid_namespace(namespaced: Vm, program: Program, agent_program: Path) -> None:
    """Where the kernel's own numbers of threads and machines are of no use."""
    assert namespaced.status(namespaced.pid, "NSpid").split()[-1] == "1"
    wrapper = program.vmm.with_name("agent-inside")
    enter = f"nsenter --target {namespaced.pid} --pid --mount --"
    wrapper.write_text(f'#!/bin/sh\nexec {enter} {agent_program} "$@"\n')
    wrapper.chmod(0o755)
    _use(namespaced, Agent(1, wrapper))


def test_a_jailed_vmm(program: Program) -> None:
    """As Firecracker's jailer leaves one: static, in a root directory without /proc and
    in namespaces of its own, of another user, and filters on its vCPUs' threads that
    end the process at any system call but KVM_RUN."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a jail")
    jail = program.vmm.parent
    source = Path(__file__).parent / "guests" / "vmm.c"
    subprocess.run(
        ["gcc", "-static", "-O1", "-pthread", "-o", str(jail / "jailed"), str(source)], check=True
    )
    kvm = os.open("/dev/kvm", os.O_RDWR)
    command = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--"]
    command += ["chroot", f"--userspec={NOBODY}:{NOBODY}", str(jail), "/jailed"]
    command += [f"/{program.guest.name}", "2", "seccomp", f"fd={kvm}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[kvm]) as outer:
        os.close(kvm)
        try:
            assert outer.stdout is not None
            assert outer.stdout.readline() == b"ready\n"
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            vm = Vm(_Adopted(int(children[0])), program, 2)
            try:
                _use(vm, Agent(vm.pid))
            finally:
                # Its parent's end is none to a process that has changed its user.
                os.kill(vm.pid, signal.SIGKILL)
        finally:
            outer.kill()


def _use(vm: Vm, connected: Agent) -> None:
    before = Footprint.of(vm)
    place = vm.symbols["inner_store"]
    with connected as agent:
        agent.attach()
        agent.stop()
        agent.insert("SOFTWARE", place, gpa=place, hva=vm.hva + place)
        agent.resume()
        assert select.select([agent.event_fd], [], [], 60.0)[0]
        assert agent.registers(agent.shared.focus)["rip"] == place
        agent.remove("SOFTWARE", place, gpa=place, hva=vm.hva + place)
        agent.detach()
    vm.assert_progress()
    assert Footprint.of(vm) == before


def test_another_users_vmm(start: Start, unprivileged: Path) -> None:
    vm = start(1)
    with Agent(vm.pid, unprivileged) as agent, pytest.raises(AccessDeniedError):
        agent.discover()
    assert isinstance(refusal(vm.pid, unprivileged), AccessDeniedError)
    vm.assert_progress()


def test_discovery_touches_nothing(start: Start) -> None:
    vm = start(2)
    with Agent(vm.pid) as agent:
        found = agent.discover()
        assert [vcpu.id for vcpu in found.vcpus] == [0, 1]
        assert {vcpu.tid for vcpu in found.vcpus} < set(vm.tids()) - {vm.pid}
        assert all(vcpu.kvm_run for vcpu in found.vcpus)
        assert found.error is None
        assert all(vm.status(tid, "TracerPid") == "0" for tid in vm.tids())
    vm.assert_progress()


def test_exits_while_attached(start: Start) -> None:
    vm = start(2)
    with Agent(vm.pid) as agent:
        agent.attach()
        vm.process.kill()
        assert select.select([agent.event_fd], [], [], 60.0)[0]
        assert agent.shared.gone
        with pytest.raises(TargetGoneError):
            agent.stop()


def test_a_stuck_vcpu_times_out_and_the_others_go_on(start: Start) -> None:
    vm = start(2)
    vm.set_mode(STUCK)  # both: their VMM threads wait for ever in an OUT
    wait_until(lambda: sum(map(_is_pausing, vm.tids())) == 3, "both vCPUs to be stuck")
    with Agent(vm.pid) as agent, pytest.raises(TargetTimeoutError, match="port I/O"):
        agent.attach(timeout=0.3)
    assert vm.process.poll() is None
    assert all(vm.status(tid, "TracerPid") == "0" for tid in vm.tids())


def test_one_stuck_vcpu_leaves_the_other_running(start: Start) -> None:
    vm = start(2)
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop(1)
        vm.set_mode(STUCK)
        wait_until(lambda: sum(map(_is_pausing, vm.tids())) == 2, "vCPU 0 to be stuck")
        vm.set_mode(COMPUTE)
        agent.resume()
        with pytest.raises(TargetTimeoutError, match="vCPU 0"):
            agent.stop(timeout=0.3)
        before = vm.counters()[1]
        wait_until(lambda: vm.counters()[1] > before, "progress of vCPU 1")


def test_a_vmm_that_waits_for_a_reader_of_its_output(start: Start) -> None:
    """As with a serial port on a full pipe: what waits cannot be stopped, nothing of
    it is lost, and once somebody reads it is an ordinary vCPU again."""
    vm = start(2, "pipe")
    before = Footprint.of(vm)
    with Agent(vm.pid) as agent:
        agent.attach()
        agent.stop()
        vm.set_mode(STUCK)
        agent.resume()
        wait_until(lambda: sum(map(_is_writing, vm.tids())) == 2, "both vCPUs to wait")
        with pytest.raises(TargetTimeoutError, match="waiting in the VMM after port I/O"):
            agent.stop(timeout=0.5)
        assert sum(map(_is_writing, vm.tids())) == 2
        vm.set_mode(COMPUTE)
        assert vm.process.stdout is not None
        assert vm.process.stdout.read(2 << 17) == bytes(2 << 17)
        vm.assert_progress()
        agent.stop()
        vm.assert_history()
        agent.resume()
        vm.assert_progress()
    assert Footprint.of(vm) == before


def _is_pausing(tid: int) -> bool:
    """In pause(), as the VMM's first thread always is."""
    return Path(f"/proc/{tid}/syscall").read_text().startswith("34 ")


def _is_writing(tid: int) -> bool:
    return Path(f"/proc/{tid}/syscall").read_text().startswith("1 0x1 ")


def test_seccomp_filter_is_suspended(start: Start) -> None:
    vm = start(2, "seccomp")
    before = Footprint.of(vm)
    with Agent(vm.pid) as agent:
        assert agent.discover().seccomp
        agent.attach()
        place = vm.symbols["inner_store"]
        for _ in range(20):
            agent.stop()
            agent.ioctl(0, "GET_REGS", bytes(144))
            agent.insert("SOFTWARE", place, gpa=place, hva=vm.hva + place)
            agent.resume()
            assert select.select([agent.event_fd], [], [], 60.0)[0]
            agent.clear_event()
            agent.remove("SOFTWARE", place, gpa=place, hva=vm.hva + place)
            agent.resume()
        agent.detach()
    vm.assert_progress()
    assert Footprint.of(vm) == before


def test_seccomp_without_the_right_to_suspend_it(start: Start, unprivileged: Path) -> None:
    vm = start(2, "seccomp", user=NOBODY)
    before = Footprint.of(vm)
    assert isinstance(refusal(vm.pid, unprivileged), SeccompError)
    vm.assert_progress()
    assert Footprint.of(vm) == before


def test_an_ordinary_user_and_their_own_vmm(start: Start, unprivileged: Path) -> None:
    """No debugfs: threads are found by looking. No perf: exits are caught at
    system calls."""
    vm = start(2, "eintr", user=NOBODY)
    before = Footprint.of(vm)
    place = vm.symbols["inner_store"]
    with Agent(vm.pid, unprivileged) as agent:
        attached = agent.attach()
        assert attached.sync_regs
        assert not attached.perf
        for _ in range(5):
            agent.stop()
            agent.insert("SOFTWARE", place, gpa=place, hva=vm.hva + place)
            agent.resume()
            assert select.select([agent.event_fd], [], [], 60.0)[0]
            agent.clear_event()
            vcpu = agent.shared.focus
            assert agent.registers(vcpu)["rip"] == place
            agent.resume({vcpu: "STEP"})
            assert select.select([agent.event_fd], [], [], 60.0)[0]
            agent.clear_event()
            agent.remove("SOFTWARE", place, gpa=place, hva=vm.hva + place)
            agent.resume()
            vm.assert_progress()
        agent.stop()
        vm.assert_history()
        agent.detach()
    vm.assert_progress()
    assert Footprint.of(vm) == before


def test_requests_that_make_no_sense(start: Start) -> None:
    vm = start(1)
    with Agent(vm.pid) as agent:
        with pytest.raises(InvalidRangeError):
            agent.stop()  # not attached
        agent.attach()
        with pytest.raises(KvmgdbError, match="running"):
            agent.ioctl(0, "GET_REGS", bytes(144))
        agent.stop()
        bad: list[Callable[[], object]] = [
            lambda: agent.ioctl(7, "GET_REGS", bytes(144)),
            lambda: agent.ioctl(-1, "GET_REGS", bytes(144)),
            lambda: agent.ioctl(0, "GET_REGS", bytes(143)),
            lambda: agent.ioctl(0, "GET_MSRS", b"\xff\xff\xff\xff" + bytes(4)),
            lambda: agent.ioctl(0, "GET_MSRS", b""),
            lambda: agent.insert("SOFTWARE", 0x1000, gpa=0x1000, hva=0),
            lambda: agent.insert("SOFTWARE", 0x1000, gpa=0x1000, hva=1 << 63),
            lambda: agent.insert("WRITE", 0x1001, 8),
            lambda: agent.insert("HARDWARE", 0x1000, 3),
            lambda: agent.remove("HARDWARE", 0x1000),
            lambda: agent.attach(),
        ]
        for request in bad:
            with pytest.raises(InvalidRangeError):
                request()
        agent.resume()
        vm.assert_progress()


def test_a_stopped_process_stays_stopped(start: Start) -> None:
    """SIGSTOP by somebody else: the job's business, not ours."""
    vm = start(2, "eintr")
    os.kill(vm.pid, signal.SIGSTOP)
    wait_until(lambda: vm.status(vm.pid, "State")[0] in "Tt", "SIGSTOP")
    before = vm.counters()
    with Agent(vm.pid) as agent:
        agent.attach()
        time.sleep(0.2)
        agent.stop()
        agent.resume()
        time.sleep(0.1)
    after = vm.counters()
    # Attaching asks KVM inside the VMM, which needs no guest instruction.
    assert before == after
    os.kill(vm.pid, signal.SIGCONT)
    vm.assert_progress()
