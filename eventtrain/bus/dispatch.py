"""Emission: calling the handlers of an event, one after the other.

The functions that do it are generated, one call a line, because that is how
Python runs them fastest: in a ``for`` loop over different functions the
interpreter cannot specialise the one call site they share, while here each
call has its own. ``python -m benchmarks emit`` shows the difference. Printed
for two handlers (``print(source("checkpoint", 2))``), a function reads::

    def emit(sender, token):
     try:
      if token.pending is not None: token.check()
      r = h0(sender)
      if (r is not None or token.pending is not None) and look(r, token): token.check()
      r = h1(sender)
      if (r is not None or token.pending is not None) and look(r, token): token.check()
     except BaseException as error:
      annotate(error, entries, sender)
      raise

The handler that is running, or that raised, is known from the line number: the
calls need not keep track of it.
"""

from __future__ import annotations

import builtins
import linecache
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import CodeType, FrameType, FunctionType
from typing import Literal, cast

from ..cancellation import CancellationToken, Unwind
from ..errors import combine_errors
from .handlers import Handler, position
from .receivers import reject_flag

Style = Literal["send", "checkpoint", "closing"]
"""``send``: skips the rest once the token is cancelled. ``checkpoint``: leaves the
scope then. ``closing``: runs every handler whatever happens."""

NEVER = CancellationToken()
"""Stands in for a token where none was given."""

_FILENAME = "<eventtrain dispatch of {n} handlers, {style}>"
_PREFIX = "<eventtrain dispatch"
_UNROLLED = 128
"""Above this many handlers it is a loop after all: longer functions take long to compile."""


def look(result: object, token: CancellationToken) -> bool:
    """Judge a handler's return value; return whether the token is cancelled.

    Raises:
        TypeError: The handler returned ``True`` or ``False``.
    """
    reject_flag(result)
    return token.pending is not None


def keep(
    errors: list[BaseException] | None,
    error: BaseException,
    entries: Sequence[Handler],
    sender: object,
    token: CancellationToken,
) -> list[BaseException] | None:
    """Collect what a closing handler raised; a delivered cancellation just ends that handler."""
    if isinstance(error, Unwind):
        return errors
    token.closing_error = error
    annotate(error, entries, sender)
    return [error] if errors is None else [*errors, error]


def annotate(error: BaseException, entries: Sequence[Handler], sender: object) -> None:
    """Add one note to ``error`` that says in which handler, of what event, it was raised."""
    if isinstance(error, Unwind) or error.__traceback__ is None:
        return
    if any(note.startswith("eventtrain: ") for note in getattr(error, "__notes__", ())):
        return
    frame, line = error.__traceback__.tb_frame, error.__traceback__.tb_lineno
    handler = _running(frame, line, entries)
    if handler is not None:
        error.add_note(f"eventtrain: raised in {handler.describe()}{position(sender)}")


def running_handler() -> Handler | None:
    """Return the handler that the calling code runs in, or ``None`` outside of handlers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PREFIX) and "entries" in frame.f_globals:
            return _running(frame, frame.f_lineno, frame.f_globals["entries"])
        frame = frame.f_back
    return None


def compile_emission(
    style: Style,
    entries: Sequence[Handler],
    sender: object = None,
    token: CancellationToken = NEVER,
) -> Callable[..., None]:
    """Make the function that calls ``entries`` in this order.

    Args:
        style: See ``Style``.
        entries: The handlers, in order.
        sender: What the handlers get, for ``checkpoint`` and ``closing``.
        token: The token to look at, for ``checkpoint``.

    Returns:
        ``emit(sender, token=None)`` for style ``send``, else ``emit()``.
    """
    calls = [entry.compile() for entry in entries]
    n = len(calls) if len(calls) <= _UNROLLED else -1
    # Handlers are the function's globals: read in place, where closure cells or
    # arguments would be copied and counted handler by handler in every emission.
    names = {**_NAMES, "entries": tuple(entries), "calls": calls}
    names.update((f"h{i}", call) for i, call in enumerate(calls))
    defaults = (None,) if style == "send" else (sender, token)
    # The interpreter keeps what it learned about a call site in the code object:
    # every emission gets code of its own, or they would unlearn each other's.
    return FunctionType(_code(style, n).replace(), names, "emit", defaults)


def rebind(
    emission: Callable[..., None], sender: object, token: CancellationToken
) -> Callable[[], None]:
    """Return an ``emission`` that was compiled already, for another sender and token.

    What the interpreter has learned about its calls stays learned.
    """
    known = cast(FunctionType, emission)
    return FunctionType(known.__code__, known.__globals__, "emit", (sender, token))


def source(style: Style, n: int) -> str:
    """Return the source that emits to ``n`` handlers; ``-1`` for any number, in a loop."""
    lines = ["def emit(sender, token):", *_HEAD[style]]
    if n >= 0:
        lines += [line.replace("CALL", f"h{i}") for i in range(n) for line in _EACH[style]]
    else:
        lines.append("  for i, call in enumerate(calls):")
        lines += [f" {line.replace('CALL', 'call')}" for line in _EACH[style]]
    return "\n".join([*lines, *_TAIL[style], ""])


_HEAD: dict[Style, list[str]] = {
    "send": [
        " if token is None: token = NEVER",
        " try:",
        "  if token.pending is not None: return",
    ],
    "checkpoint": [" try:", "  if token.pending is not None: token.check()"],
    "closing": [" errors = None", " try:", "  pass"],
}
_EACH: dict[Style, list[str]] = {
    "send": [
        "  r = CALL(sender)",
        "  if (r is not None or token.pending is not None) and look(r, token): return",
    ],
    "checkpoint": [
        "  r = CALL(sender)",
        "  if (r is not None or token.pending is not None) and look(r, token): token.check()",
    ],
    "closing": [
        "  try:",
        "   if (r := CALL(sender)) is not None: look(r, token)",
        "  except BaseException as error: errors = keep(errors, error, entries, sender, token)",
    ],
}
_RAISE = [" except BaseException as error:", "  annotate(error, entries, sender)", "  raise"]
_TAIL: dict[Style, list[str]] = {
    "send": _RAISE,
    "checkpoint": _RAISE,
    "closing": [
        # An interrupt may arrive between two handlers.
        " except BaseException as error: errors = keep(errors, error, entries, sender, token)",
        " if errors is not None: token.closing_error = None; raise combine_errors(errors)",
    ],
}


@cache
def _code(style: Style, n: int) -> CodeType:
    text = source(style, n)
    filename = _FILENAME.format(n=n if n >= 0 else f"over {_UNROLLED}", style=style)
    # Registered, so that tracebacks and debuggers can show the lines.
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    module = compile(text, filename, "exec")
    return next(c for c in module.co_consts if isinstance(c, CodeType))


def _running(frame: FrameType, line: int, entries: Sequence[Handler]) -> Handler | None:
    names = frame.f_locals
    if "i" in names:
        return cast(Handler, entries[names["i"]])
    style = cast(Style, frame.f_code.co_filename.rstrip(">").rpartition(" ")[2])
    index = (line - 2 - len(_HEAD[style])) // len(_EACH[style])
    return entries[index] if 0 <= index < len(entries) else None


_NAMES = {
    "NEVER": NEVER,
    "annotate": annotate,
    "combine_errors": combine_errors,
    "keep": keep,
    "look": look,
    "__builtins__": builtins,
    "__name__": __name__,
}
