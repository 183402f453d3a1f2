"""Options on a callback's methods, and what an overriding method inherits of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, Unpack

from .background_options import MethodOptions, without_own
from .bus.event_bus import Events as _Events
from .bus.handlers import Options

F = TypeVar("F", bound=Callable[..., object])
Events = _Events | None
_OPTIONS = "_eventtrain_options"


def handler(event: Events = None, **options: Unpack[MethodOptions]) -> Callable[[F], F]:
    """Set options on a callback's method, or make a method of any name a handler.

    A method that overrides another one inherits its event and options, without a decorator
    too; what is given anew, by ``@handler(...)`` on it, replaces what it inherits option by
    option. So ``@handler(during=None)`` takes a filter away.

    Args:
        event: Event or events to subscribe to; by default the method's own name.
            Events added with ``bus.declare`` are named here.
        **options: ``priority``, ``every``, ``once``, ``when``, ``during``,
            ``before``, ``after``, ``on_error``, ``ranks``, ``name`` as in ``EventBus.on``;
            ``background``, ``queue``, ``full``, ``tensors`` as in ``Runner.on``.

    Raises:
        TypeError, ValueError: An option is unknown or out of range, or what is decorated
            is no method.
    """
    if callable(event):
        raise TypeError("write @handler(...) with parentheses, for example @handler(priority=10)")
    Options(**without_own(options))

    def decorate(method: F) -> F:
        if isinstance(method, type) or not (callable(method) or hasattr(method, "__func__")):
            raise TypeError(f"@handler(...) decorates a method, got a {type(method).__name__}")
        setattr(method, _OPTIONS, _replaced(_given(method), (event, options)))
        return method

    return decorate


def options_of(owner: type, attribute: str) -> tuple[Events, dict[str, Any]] | None:
    """Return the event and the options that an attribute of a class has and inherits.

    Args:
        owner: The class.
        attribute: The name of the method.

    Returns:
        What ``@handler`` was given on the method and on those that it overrides, from the
        last class in the order of method resolution to the first, the later replacing the
        earlier; ``None`` where there was none. A class that sets the name to ``None``
        ends what lies behind it.
    """
    found: tuple[Events, dict[str, Any]] | None = None
    for each in reversed(owner.__mro__):
        if attribute in vars(each):
            member = vars(each)[attribute]
            found = None if member is None else _replaced(found, _given(member))
    return found


def _given(member: Any) -> Any:
    """Return what ``@handler`` was given on this very method."""
    inner = getattr(member, "__func__", None) or getattr(member, "func", None)
    return getattr(member, _OPTIONS, None) or getattr(inner, _OPTIONS, None)


def _replaced(old: Any, new: Any) -> Any:
    if old is None or new is None:
        return old or new
    return (old[0] if new[0] is None else new[0]), {**old[1], **new[1]}
