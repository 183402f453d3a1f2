"""Context managers written as generators, around code of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from .errors import set_traceback

P = ParamSpec("P")
T = TypeVar("T")


def around(function: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """Make a context manager of a generator function that yields once.

    Unlike that of ``contextlib`` it writes nothing on an exception that passes: a frozen
    dataclass refuses that, and another exception would take its place.
    """

    @wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Around(function(*args, **kwargs))

    return made


class _Around(AbstractContextManager[T]):
    """Runs the two halves of a generator around a block."""

    def __init__(self, halves: Any) -> None:
        self._halves = halves

    def __enter__(self) -> T:
        return next(self._halves)  # type: ignore[no-any-return]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is None:
            next(self._halves, None)
            return False
        try:
            self._halves.throw(error)
        except StopIteration:  # the generator's end: Python lets no other one out of it
            return True
        except BaseException as raised:
            is_hidden = isinstance(error, StopIteration) and isinstance(raised, RuntimeError)
            if raised is not error and not (is_hidden and raised.__cause__ is error):
                raise
        set_traceback(error, traceback)  # less the way through the generator
        return False
