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

``LiveEmission`` is a function that stays the same one while the handlers change: somebody
may have kept it. Its code is exchanged, and handlers bear other names in each code, so that an
emission under way, which goes on in the code that it began with, still finds its own.
"""

from __future__ import annotations

import builtins
import linecache
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import count
from types import CodeType, FrameType, FunctionType
from typing import Any, Literal, cast

from ..cancellation import CancellationToken, Unwind
from ..errors import add_note, combine_errors
from .handlers import Handler, place_of
from .receivers import reject_result

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
        TypeError: The handler returned what no handler may; see ``reject_result``.
    """
    reject_result(result)
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
    # What the exception, the sender and the handler's own objects do here may fail, and must
    # not take the exception's place.
    with suppress(Exception):
        if any(str(note).startswith("eventtrain: ") for note in getattr(error, "__notes__", ())):
            return
        frame, line = error.__traceback__.tb_frame, error.__traceback__.tb_lineno
        handler = _running(frame, line, entries)
        if handler is not None:
            add_note(error, f"eventtrain: raised in {handler.describe()}{place_of(sender)}")


def emitting_in(frame: FrameType) -> Handler | None:
    """Return the handler that is called in ``frame``; ``None`` if that is no emission."""
    return _called_at(frame, frame.f_lineno)


def raising_handler(error: BaseException) -> Handler | None:
    """Return the handler that has raised ``error``, the outermost if one had another called."""
    step = error.__traceback__
    while step is not None:
        handler = _called_at(step.tb_frame, step.tb_lineno)
        if handler is not None:
            return handler
        step = step.tb_next
    return None


def _called_at(frame: FrameType, line: int) -> Handler | None:
    code = frame.f_code
    if not code.co_filename.startswith(_PREFIX):
        return None
    entries = next(name for name in code.co_names if name.partition("#")[0] == "entries")
    return _running(frame, line, frame.f_globals[entries])


def make_emission(
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
    code, names = _written_for(style, entries)
    defaults = (None,) if style == "send" else (sender, token)
    return FunctionType(code, {**_NAMES, **names}, "emit", defaults)


def _written_for(
    style: Style, entries: Sequence[Handler], mark: str = ""
) -> tuple[CodeType, dict[str, object]]:
    """Return code that calls ``entries``, and what its own names stand for; they end in ``mark``.

    Handlers are global names: read in place, where closure cells or arguments would be copied and
    counted handler by handler in every emission.
    """
    calls = [entry.callee() for entry in entries]
    n = len(calls) if len(calls) <= _UNROLLED else -1
    own: dict[str, object] = {"entries": tuple(entries), "calls": calls}
    own.update((f"h{i}", call) for i, call in enumerate(calls))
    # The interpreter keeps what it learned about a call site in the code object:
    # every emission gets code of its own, or they would unlearn each other's.
    code = _code(style, n)
    marked = (name + mark if name in own else name for name in code.co_names)
    return code.replace(co_names=tuple(marked)), {name + mark: v for name, v in own.items()}


class LiveEmission:
    """``emit(sender, token=None)``, one function for good, whatever its handlers become.

    Args:
        prepare: Called with ``(sender, token)`` when the function is called for the first time
            after ``reset``; calls ``serve`` or ``serve_by_sender`` and emits.

    Attributes:
        emit: The function.
    """

    def __init__(self, prepare: Callable[[Any, CancellationToken | None], None]) -> None:
        self._names: dict[str, Any] = {**_NAMES, "prepare": prepare}
        self._marks = count(1)
        self._in_use: set[weakref.ref[CodeType]] = set()
        self._emit = FunctionType(_PREPARING, self._names, "emit", (None,))
        self.emit = cast("Callable[..., None]", self._emit)

    def reset(self) -> None:
        """Have ``prepare`` called at the next call."""
        self._emit.__code__ = _PREPARING

    def serve(self, entries: Sequence[Handler]) -> None:
        """Call these handlers from the next call on."""
        code, names = _written_for("send", entries, f"#{next(self._marks)}")
        self._names.update(names)
        # An emission under way holds the code that it runs in, and needs its names until then.
        self._in_use.add(weakref.ref(code, partial(self._forget, tuple(names))))
        self._emit.__code__ = code

    def serve_by_sender(
        self,
        known: dict[int, tuple[object, Callable[..., None]]],
        remember: Callable[[Any], tuple[object, Callable[..., None]]],
    ) -> None:
        """Call what ``known`` has for the sender's ``id``, or else what ``remember`` returns."""
        self._names.update(known=known, remember=remember)
        self._emit.__code__ = _BY_SENDER

    def _forget(self, names: Iterable[str], code: weakref.ref[CodeType]) -> None:
        self._in_use.discard(code)
        for name in names:
            self._names.pop(name, None)


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
    number = n if n >= 0 else f"over {_UNROLLED}"
    return _translated(source(style, n), _FILENAME.format(n=number, style=style))


def _translated(text: str, filename: str) -> CodeType:
    """Return the code of the one function in ``text``."""
    # Registered, so that tracebacks and debuggers can show the lines.
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    module = compile(text, filename, "exec")
    return next(c for c in module.co_consts if isinstance(c, CodeType))


_PREPARING = _translated(
    "def emit(sender, token):\n return prepare(sender, token)\n", "<eventtrain: before an emission>"
)
_BY_SENDER = _translated(
    "def emit(sender, token):\n"
    " found = known.get(id(sender))\n"
    " if found is None: found = remember(sender)\n"
    " found[1](sender, token)\n",
    "<eventtrain: emission by sender>",
)


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
