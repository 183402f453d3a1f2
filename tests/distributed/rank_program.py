"""Ranks that are processes: ``rank_program.py PORT SIZE DEED``; each prints a line in the end.

They are forks of a process that has imported torch, which takes longest.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta

from ranks import Rank
from torch.distributed import TCPStore

from eventtrain import CancellationToken
from eventtrain.distributed import Agreement


def run(port: int, rank: int, size: int, deed: str) -> None:
    def connect() -> TCPStore:
        return TCPStore("127.0.0.1", port, None, False, wait_for_workers=False)

    own = connect()
    token = CancellationToken()
    agreement = Agreement(connect, "fit 0", token, rank=rank, world_size=size, lost_after=1.0)
    # All have joined; those that do nothing come to the end at their own pace.
    own.add("joined", 1)
    own.set(f"joined/{rank}", "")
    own.wait([f"joined/{other}" for other in range(size)], timedelta(seconds=60))
    is_last = rank == size - 1

    def at_batch() -> None:
        time.sleep(0.002 * rank)
        if is_last and deed == "freezes":
            os.kill(os.getpid(), signal.SIGSTOP)
        if is_last and deed == "dies":
            os.kill(os.getpid(), signal.SIGKILL)

    if is_last and deed == "forgets":
        return
    asks = [((0, 0, 2), "fit")] if rank == 0 and deed == "asks" else []
    fails_at = (0, 0, 1) if is_last and deed == "fails" else None
    trace = Rank([(40, 0)], token, agreement, asks, fails_at, at_batch)()
    told = (rank, len(trace.begun), trace.ended[-1][1], trace.history, trace.failure)
    # In one piece: the others write into the same pipe.
    os.write(sys.stdout.fileno(), f"{' '.join(map(str, told))}\n".encode())


def main(port: int, size: int, deed: str) -> int:
    """Be the parent, or in the end a rank; return the exit code."""
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            run(port, rank, size, deed)
            return 0
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children[:-1]]
    if deed == "freezes":
        os.kill(children[-1], signal.SIGKILL)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(children[-1], 0)[1]))
    return int(any(codes[:-1]) or codes[-1] not in (0, -signal.SIGKILL))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
