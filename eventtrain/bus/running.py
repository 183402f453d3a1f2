"""Whose code is running, told from the frames: calls need not keep track of it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from threading import Thread
from types import FrameType
from typing import Any, TypeVar

from .dispatch import emitting_in
from .handlers import Handler, OnError, Owner
from .sending import send_async_to, send_to

T = TypeVar("T")
# By id: a code object's own hash goes through all that is in it.
_SENDING = {id(function.__code__) for function in (send_to, send_async_to)}


class Home:
    """What the signals of one bus have in common.

    Attributes:
        providers: The plugins that were loaded onto that bus.
    """

    def __init__(self) -> None:
        self.providers: list[Provider] = []

    def add(self, provider: Provider) -> None:
        """Note that a plugin has been loaded, and forget those whose runs are gone."""
        self.providers[:] = [*(each for each in self.providers if each.is_in_use), provider]


class Provider:
    """A plugin that was loaded onto a bus.

    What it subscribes there is its own: while it is loaded and, later, while a handler of its own
    runs, however deep in it the call is; and whenever code of its own module subscribes, be it
    in a thread, a timer or a hook. What others subscribe for it there is out of reach.

    Args:
        label: What people should call it.
        module: Where its code is; the modules inside of it are its own too.
        home: The ``home`` of the signals of that bus.
        sender: Whom its handlers hear where they name nobody; held weakly where that is possible.
        on_error: What happens when one of them fails, in place of what they say themselves;
            ``None`` leaves it to them.
    """

    def __init__(
        self, label: str, module: str, home: Home, sender: Any, on_error: OnError | None
    ) -> None:
        self.label = label
        self.module = module
        self.home = home
        self.on_error = on_error
        try:
            self._sender: Callable[[], Any] = weakref.ref(sender)
        except TypeError:
            self._sender = lambda: sender

    @property
    def is_in_use(self) -> bool:
        """Whether whom it was loaded for is still there."""
        return self._sender() is not None

    def owns(self, module: str) -> bool:
        """Whether code of that module is its own."""
        return module == self.module or module.startswith(f"{self.module}.")

    @property
    def sender(self) -> Any:
        """Whom its handlers hear; once that is gone, itself, which emits nothing."""
        sender = self._sender()
        return self if sender is None else sender

    def take(self, handler: Handler) -> None:
        """Have a handler be its own."""
        handler.plugin, handler.provider = self.label, self
        if self.on_error is not None:
            handler.options = replace(handler.options, on_error=self.on_error)

    def run(self, function: Callable[[], T]) -> T:
        """Call a function; what that subscribes is its own."""
        return function()


_OWN = f"{__name__.partition('.')[0]}."
_PROVIDING = id(Provider.run.__code__)


class HandlerThread(Thread):
    """A thread that belongs to one handler, which runs there beside the loop.

    Args:
        handler: Whose it is.
        work: What runs there.
        *arguments: What that is called with.

    Attributes:
        handler: Whose it is.
    """

    def __init__(self, handler: Handler, work: Callable[..., object], *arguments: Any) -> None:
        super().__init__(
            target=work, args=arguments, name=f"eventtrain {handler.name}", daemon=True
        )
        self.handler = handler


def running_handler() -> Handler | None:
    """Return the handler that the calling code runs in, or ``None`` outside of handlers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        handler = _called_in(frame)
        if handler is not None:
            return handler
        frame = frame.f_back
    return None


def running_provider(home: Home, sender: object = None) -> Owner | None:
    """Return whose plugin's code is subscribing on the bus of that ``home``.

    Of the handlers of that bus which are running, and the plugins which are being loaded onto
    it, the innermost decides: a user's handler that a plugin's event calls is the user's. Where
    that is no handler of the plugin's whose code makes the call, its module decides.

    Args:
        home: Of the signals of that bus.
        sender: For whom it subscribes, if that is said.

    Raises:
        ValueError: That plugin was loaded for several, and nothing says for whom it subscribes.
    """
    inside = _provider_around(home)
    if not home.providers:
        return inside
    module, _ = _calling_module()
    if isinstance(inside, Provider) and inside.owns(module):
        return inside
    loaded = [p for p in home.providers if p.owns(module) and p.is_in_use]
    named = [p for p in loaded if p.sender is sender]
    if len(loaded) > 1 and len(named) != 1:
        raise ValueError(
            f"plugin {loaded[0].label} was loaded for several runs on this bus: say for which of "
            "them this subscribes, with run.on(...) or sender=run"
        )
    return (named or loaded)[0] if loaded else inside


def level_of_caller() -> int:
    """How far up the code is that calls this package: the ``stacklevel`` of a warning."""
    return _calling_module()[1] - 1  # less this function


def _calling_module() -> tuple[str, int]:
    """The module whose code calls this package, and how many frames up it is."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if not module.startswith(_OWN) and module not in ("contextlib", "functools"):
            return module, level
        frame, level = frame.f_back, level + 1
    return "", level


def _provider_around(home: Home) -> Owner | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if id(frame.f_code) == _PROVIDING:
            provider: Provider = frame.f_locals["self"]
            if provider.home is home:
                return provider
        else:
            handler = _called_in(frame)
            if handler is not None and handler.home is home:
                return handler.provider
        frame = frame.f_back
    return None


def _called_in(frame: FrameType) -> Handler | None:
    if id(frame.f_code) in _SENDING:
        return frame.f_locals.get("handler")
    return emitting_in(frame)
