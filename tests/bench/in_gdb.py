"""Runs inside GDB: measures what GDB does through the remote target that it is
connected to, and prints ``RESULT name seconds`` lines. Times are GDB's own.

Set before: ``bench_address``, ``bench_dense``, ``bench_length``, ``bench_file``.
"""

import time

import gdb

ROUNDS = 100


def result(name: str, seconds: float) -> None:
    print(f"RESULT {name} {seconds:.9f}")


def timed(command: str) -> float:
    begin = time.perf_counter()
    gdb.execute(command, to_string=True)
    return time.perf_counter() - begin


length = int(gdb.parse_and_eval("$bench_length"))
path = gdb.parse_and_eval("$bench_file").string()

# A step of one vCPU, whatever the others would do meanwhile.
gdb.execute("set scheduler-locking on")
for name, variable in (("dump", "bench_address"), ("dense", "bench_dense")):
    start = int(gdb.parse_and_eval(f"${variable}"))
    result(name, min(timed(f"dump binary memory {path} {start} {start + length}") for _ in "12"))


def read_registers() -> float:
    begin = time.perf_counter()
    gdb.execute("maintenance flush register-cache", to_string=True)
    for name in ("rip", "rsp", "cs", "cr3"):
        int(gdb.selected_frame().read_register(name))
    return time.perf_counter() - begin


result("registers", sorted(read_registers() for _ in range(ROUNDS))[ROUNDS // 2])
result("stepi", sorted(timed("stepi") for _ in range(ROUNDS))[ROUNDS // 2])
