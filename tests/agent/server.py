"""``python -m tests.agent.server STATE PID GVA HVA``: attaches to PID, enters
STATE, prints the agent's PID, and stays in that state until it is killed."""

from __future__ import annotations

import select
import sys
import time

from kvmgdb.errors import TargetGoneError
from kvmgdb.machine.agent import Agent


def main() -> None:
    state, pid, gva, hva = sys.argv[1], *map(int, sys.argv[2:])
    agent = Agent(pid)
    agent.attach()
    if state != "idle":
        agent.stop()
    if state in ("armed", "at_breakpoint"):
        agent.insert("SOFTWARE", gva, gpa=gva, hva=hva)
        agent.resume()
    if state == "at_breakpoint":
        wait(agent)
    if state == "watching":
        agent.insert("WRITE", gva & ~7, 8)  # code, which nobody writes
        agent.resume()
    print(agent.process.pid, flush=True)
    while state in ("armed", "stepping", "sampling", "calling"):
        if state == "calling":
            agent.stop()
            for vcpu in range(2):
                agent.ioctl(vcpu, "GET_REGS", bytes(144))
            agent.resume()
            continue
        if state == "sampling":
            agent.resume()
            agent.stop()
            continue
        if state == "stepping":
            agent.resume({0: "STEP_BLOCK_IRQ", 1: "STEP_BLOCK_IRQ"})
        wait(agent)
        if state == "armed":
            agent.resume()
    time.sleep(3600)


def wait(agent: Agent) -> None:
    """Until the next event; the test may kill the agent meanwhile."""
    while not select.select([agent.event_fd], [], [], 0.1)[0]:
        if agent.process.poll() is not None:
            raise TargetGoneError("the agent has ended")
    agent.clear_event()


if __name__ == "__main__":
    try:
        main()
    except TargetGoneError:
        sys.exit(0)  # the test has killed the agent
