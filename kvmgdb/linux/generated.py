"""Code that the kernel makes while it runs, as far as /proc/kallsyms lists it: that
of BPF programs, and the trampolines of BPF, ftrace and kprobes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvmgdb.errors import KvmgdbError
from kvmgdb.linux.kernel import PAGE, Kernel
from kvmgdb.linux.native import Code

# include/linux/ftrace.h: FTRACE_OPS_FL_SAVE_REGS
_SAVES_REGISTERS = 1 << 2
# More than what one list of them can be in a kernel that works.
_MAX_CODE = 64 << 20
# push %rbp; mov %rsp,%rbp: what a JIT begins code with, behind what can be patched.
_PUSH_FRAME = bytes.fromhex("554889e5")
_MAX_PROLOGUE = 32


@dataclass(frozen=True)
class Generated:
    """A piece of such code at ``address`` (GVA), ``size`` in bytes. ``owner`` is what
    /proc/kallsyms has in place of a module's name: "bpf", "__builtin__ftrace" or
    "__builtin__kprobes". ``original`` is the code that it is a copy of, or 0."""

    address: int
    size: int
    name: str
    owner: str
    original: int = 0


@dataclass(frozen=True)
class GeneratedCode:
    """All of it, as the kernel lists it; ``damage`` says why it may not be."""

    pieces: tuple[Generated, ...]
    damage: str | None = None

    def __iter__(self) -> Iterator[Generated]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)

    def at(self, address: int) -> Generated | None:
        """The piece that an address lies in."""
        ordered = sorted(self.pieces, key=lambda piece: piece.address)
        place = bisect_right(ordered, address, key=lambda piece: piece.address)
        if place and address < ordered[place - 1].address + ordered[place - 1].size:
            return ordered[place - 1]
        return None


def list_generated(kernel: Kernel) -> GeneratedCode:
    """The code that the guest's kernel has generated so far, in the order in which
    /proc/kallsyms lists it. A kernel that keeps no such list has none."""
    found: list[Generated] = []
    damage = None
    readers: tuple[Callable[[Kernel], Iterator[Generated]], ...] = (_ftrace, _bpf, _kprobes)
    for read in readers:
        try:
            found += (piece for piece in read(kernel) if 0 < piece.size <= _MAX_CODE)
        except KvmgdbError as error:
            damage = str(error)
    return GeneratedCode(tuple(found), damage)


def _ftrace(kernel: Kernel) -> Iterator[Generated]:
    """ftrace_get_trampoline_kallsym() of kernel/trace/ftrace.c, since 5.8. A trampoline
    is a copy of ftrace_caller or ftrace_regs_caller (arch/x86/kernel/ftrace.c)."""
    head = kernel.find_symbol("ftrace_ops_trampoline_list")
    if head is None:
        return
    for ops in kernel.object("list_head", head).list("ftrace_ops", "list"):
        address = ops.member("trampoline").integer()
        if address == 0:
            continue
        saves = ops.member("flags").integer() & _SAVES_REGISTERS
        yield Generated(
            address,
            ops.member("trampoline_size").integer(),
            "ftrace_trampoline",
            "__builtin__ftrace",
            kernel.find_symbol("ftrace_regs_caller" if saves else "ftrace_caller") or 0,
        )


def _bpf(kernel: Kernel) -> Iterator[Generated]:
    """bpf_get_kallsym() of kernel/bpf/core.c, since 5.7."""
    head = kernel.find_symbol("bpf_kallsyms")
    if head is None or kernel.types.find("struct bpf_ksym") is None:
        return
    for symbol in kernel.object("list_head", head).list("bpf_ksym", "lnode"):
        start = symbol.member("start").integer()
        size = symbol.member("end").integer() - start
        yield Generated(start, size, symbol.member("name").string(), "bpf")


def _kprobes(kernel: Kernel) -> Iterator[Generated]:
    """kprobe_get_kallsym() of kernel/kprobes.c, since 5.8: pages of instructions."""
    for name in ("kprobe_insn_slots", "kprobe_optinsn_slots"):
        address = kernel.find_symbol(name)
        if address is None or not kernel.types.has_member("kprobe_insn_cache", "sym"):
            continue
        slots = kernel.object("kprobe_insn_cache", address)
        for page in slots.member("pages").list("kprobe_insn_page", "list"):
            start = page.member("insns").integer()
            yield Generated(start, PAGE, slots.member("sym").string(), "__builtin__kprobes")


def undescribed_parts(
    kernel: Kernel, generated: GeneratedCode
) -> Iterator[tuple[range, Code, int]]:
    """How generated code is unwound where frame pointers do not tell: ranges (GVA)
    that do not overlap, and what each is a copy of."""
    end = 0
    for piece in sorted(generated, key=lambda piece: piece.address):
        if piece.address < end:
            continue  # a lie
        end = piece.address + piece.size
        if piece.original:
            yield range(piece.address, end), Code.COPY, piece.original
        elif piece.owner == "bpf":
            length = min(piece.size, _MAX_PROLOGUE)
            try:
                pushes = kernel.read(piece.address, length).find(_PUSH_FRAME)
            except KvmgdbError:
                continue
            if pushes >= 0:
                yield range(piece.address, piece.address + pushes + 1), Code.THUNK, 0
