"""Counts in place of times: what a machine's load and speed cannot change.

The numbers are exact and the same in every run, but they are those of one
minor version of Python: whoever holds them against a limit leaves a margin.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from eventtrain import Runner

from .loops import Way, null_learner
from .measure import without_gc

Count = Callable[[Callable[[], object]], int]
"""Calls a function and returns how many of something that took."""


def bytecodes(function: Callable[[], object]) -> int:
    """Call ``function`` and count the bytecode instructions that Python executes in this thread."""
    if sys.version_info >= (3, 12):  # where tracing leaves some out
        return _monitored(function)
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def _monitored(function: Callable[[], object]) -> int:
    monitoring: Any = vars(sys)["monitoring"]
    tool = next(each for each in range(6) if monitoring.get_tool(each) is None)
    own, here, count = threading.get_ident(), _monitored.__code__, 0

    def tell(code: CodeType, offset: int) -> None:
        nonlocal count
        count += code is not here and threading.get_ident() == own

    monitoring.use_tool_id(tool, "eventtrain benchmarks")
    try:
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, tell)
        monitoring.set_events(tool, monitoring.events.INSTRUCTION)
        function()
    finally:
        monitoring.set_events(tool, 0)
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, None)
        monitoring.free_tool_id(tool)
    return count


def python_calls(function: Callable[[], object]) -> int:
    """Call ``function`` and count the calls of Python functions, its own included."""
    return _calls(function, "call")


def c_calls(function: Callable[[], object]) -> int:
    """Call ``function`` and count the calls of functions written in C."""
    return _calls(function, "c_call")


def _calls(function: Callable[[], object], kind: str) -> int:
    count = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event == kind

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def per_batch(count: Count, way: Way, batches: int = 50) -> float:
    """Count what a batch of the null step takes; what a fit costs once is taken off.

    Args:
        count: What to count.
        way: The loop.
        batches: One fit has that many, another one twice as many.
    """
    short, long = null_learner(batches), null_learner(2 * batches)
    way(short)  # compiles what is compiled on first use
    with without_gc():  # which may run finalizers
        return (count(lambda: way(long)) - count(lambda: way(short))) / batches


def blocks_per_batch(run: Runner, batches: int = 300) -> float:
    """Count the memory blocks that a batch of the null step leaves behind.

    Read within one fit, at batch ``batches`` and at the last, three times as
    many: by then all counters are beyond the small numbers that Python keeps ready.
    """
    seen: list[int] = []

    def look(run: Any) -> None:
        if run.batch_index in (batches, 3 * batches):
            seen.append(sys.getallocatedblocks())

    with run.on("begin_batch", look), without_gc():
        run.fit(1, null_learner(3 * batches + 1))
    return (seen[1] - seen[0]) / (2 * batches)
