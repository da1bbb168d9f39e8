"""The program that the kernel maps into every task (arch/x86/entry/vdso)."""

from __future__ import annotations

from dataclasses import dataclass

from kvmgdb.errors import KvmgdbError, NotFoundError
from kvmgdb.linux.kernel import Kernel


@dataclass(frozen=True)
class Vdso:
    """Its image of ``size`` bytes at ``address`` (GVA of the kernel's), which a task has
    ``mapped_at`` an address of its own."""

    kernel: Kernel
    address: int
    size: int
    mapped_at: int

    @classmethod
    def of(cls, kernel: Kernel, mm: int) -> Vdso | None:
        """That of the memory map ``mm`` (a struct mm_struct); None where it has none, or
        the kernel does not say."""
        try:
            context = kernel.object("mm_struct", mm).member("context")
            mapped_at = context.member("vdso").integer()
            image = context.member("vdso_image")
            if not mapped_at or not image.integer():
                return None
            size = image.target().member("size").integer()
            return cls(kernel, image.target().member("data").integer(), size, mapped_at)
        except KvmgdbError:
            return None

    def read(self, offset: int, length: int) -> bytes:
        """Raises NotFoundError for what it does not have."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise NotFoundError(f"{length} bytes at {offset} do not lie in the vDSO")
        return self.kernel.read(self.address + offset, length)
