"""``python -m kvmgdb.demo``: fetches and builds the demo's guest, and no more."""

from __future__ import annotations

import sys

from kvmgdb.demo.initramfs import build_initramfs
from kvmgdb.demo.kernel import fetch_kernel
from kvmgdb.errors import KvmgdbError


def main() -> int:
    try:
        fetch_kernel()
        build_initramfs()
    except KvmgdbError as error:
        print(f"kvmgdb: {error}", file=sys.stderr)
        if error.remedy:
            print(f"  {error.remedy}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
