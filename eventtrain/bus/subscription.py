"""What subscribing returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from .handlers import Handler


class Subscription:
    """What ``on`` returns: a handle on handlers subscribed together.

    As a context manager it disconnects them when the block is left.
    """

    __slots__ = ("handlers",)

    def __init__(self, handlers: Sequence[Handler]) -> None:
        self.handlers = tuple(handlers)

    @property
    def connected(self) -> bool:
        """Whether any of the handlers is still subscribed."""
        return any(handler.key is not None for handler in self.handlers)

    def disconnect(self) -> None:
        """End the subscription; does nothing the second time."""
        for handler in self.handlers:
            handler.detach()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *error: object) -> None:
        self.disconnect()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Subscription cannot be copied or pickled: it is the handle on the handlers of one "
            "bus. Subscribe the function again with bus.on(...)."
        )

    def __repr__(self) -> str:
        state = "" if self.connected else "disconnected: "
        return f"<Subscription: {state}{'; '.join(h.describe() for h in self.handlers)}>"
