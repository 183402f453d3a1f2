"""Exceptions that eventtrain raises on its own account.

Wrong argument types and values raise Python's ``TypeError`` and
``ValueError``. The classes here mark what a caller may want to catch by name;
each also derives from the built-in exception closest in meaning.
"""

from __future__ import annotations

import difflib
import logging
import traceback
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

logger = logging.getLogger("eventtrain")


class EventTrainError(Exception):
    """Base of every exception that eventtrain defines."""


class UnknownEventError(EventTrainError, KeyError):
    """An event name that the bus does not declare."""

    # KeyError prints the repr of its argument, which would quote the sentence.
    __str__ = Exception.__str__


class OrderError(EventTrainError, ValueError):
    """``before=``/``after=`` constraints that name nobody or contradict each other.

    Attributes:
        missing: The name that no handler bears; ``None`` for a contradiction.
    """

    def __init__(self, message: str = "", missing: str | None = None) -> None:
        super().__init__(message)
        self.missing = missing


class ScopeNotOpenError(EventTrainError, RuntimeError):
    """A cancellation of a scope that is not open.

    Attributes:
        scope: The scope that was asked for.
        open_scopes: Names of the scopes open at that moment, outermost first.
    """

    def __init__(self, scope: str, open_scopes: Sequence[str]) -> None:
        self.scope = scope
        self.open_scopes = tuple(open_scopes)
        if open_scopes:
            state = f"open now: {' > '.join(open_scopes)}"
            advice = "A scope is open from its begin_ event until just before its after_ event."
        else:
            state = "no scope is open"
            advice = "To cancel a fit before it begins, give it a token of yours: fit(..., token=)."
        super().__init__(f"cannot cancel {scope!r}: that scope is not open ({state}). {advice}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.scope, self.open_scopes), vars(self)


class RemoteError(EventTrainError, RuntimeError):
    """Another rank of a run on several processes has failed, or does not answer.

    Attributes:
        ranks: Those that failed; empty where it is the store between them that is gone.
    """

    def __init__(self, message: str = "", ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)


class DesyncError(EventTrainError, RuntimeError):
    """The ranks of a run have not done the same: their weights differ, or one waits for another.

    Attributes:
        ranks: Those that have done something else than rank 0, or do not come.
    """

    def __init__(self, message: str = "", ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)


class CallbackError(EventTrainError, TypeError):
    """A ``Callback`` class or instance that cannot be used as written."""


class PluginError(EventTrainError, RuntimeError):
    """A plugin that could not be loaded; nothing of it stays on the bus.

    Attributes:
        plugin: The name it was asked for by.
        distribution, version: The package that offers it; ``None`` where there is none.
        entry_point: What its entry point names, as ``module:object``.
        reason: Why it could not be loaded, without those names.
    """

    def __init__(
        self,
        message: str,
        *,
        plugin: str | None = None,
        distribution: str | None = None,
        version: str | None = None,
        entry_point: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.plugin = plugin
        self.distribution = distribution
        self.version = version
        self.entry_point = entry_point
        self.reason = reason or message


class DataError(EventTrainError, ValueError):
    """Data that is missing, damaged or of the wrong form."""


class UncountableError(DataError):
    """A batch with nothing to count its samples by."""


class EmptyLoaderError(DataError):
    """A loader that gave no batch."""


class CheckpointError(DataError):
    """A checkpoint that is missing, damaged, or of another run than this one."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a hint such as ``" Did you mean 'after_loss'?"``, or an empty string."""
    matches = difflib.get_close_matches(str(name), list(choices), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def describe(error: BaseException) -> str:
    """Return ``"ValueError: why"``, whatever the exception's own ``__str__`` does."""
    try:
        text = str(error)
    except Exception as failure:
        text = f"<its __str__ raised {type(failure).__name__}>"
    return f"{type(error).__name__}: {text}"


def add_note(error: BaseException, note: str) -> None:
    """Add a note to somebody's exception, or tell the log where it takes none.

    A frozen dataclass refuses one, and nothing that an exception does may replace it.
    """
    try:
        error.add_note(note)
    except Exception:
        logger.error("%s takes no note: %s", type(error).__name__, note)


def set_context(error: BaseException, context: BaseException | None) -> None:
    """Set ``error.__context__``, also where the exception is frozen."""
    vars(BaseException)["__context__"].__set__(error, context)


def set_traceback(error: BaseException, traceback: TracebackType | None) -> None:
    """Set ``error.__traceback__``, also where the exception is frozen."""
    vars(BaseException)["__traceback__"].__set__(error, traceback)


def combine_errors(errors: Sequence[BaseException]) -> BaseException:
    """Choose the exception to raise out of several and attach the others as notes.

    The first one is kept, so that its type still selects ``except`` clauses;
    but one outside ``Exception`` (``KeyboardInterrupt``, ``SystemExit``)
    outranks the others, because nothing may swallow it.

    Args:
        errors: At least one exception, in the order they were raised.

    Returns:
        The chosen exception. The others stand in its ``__notes__`` with their
        tracebacks.
    """
    chosen = next((e for e in errors if not isinstance(e, Exception)), errors[0])
    for error in errors:
        if error is not chosen:
            add_note(chosen, f"Raised as well, while scopes were closing:\n{_traced(error)}")
    return chosen


def _traced(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error)).rstrip()
    except Exception:  # of its own making
        return describe(error)
