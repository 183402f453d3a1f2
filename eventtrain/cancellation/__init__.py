"""Cancellation: a token that asks a scope of the loop to end, and the scopes that obey.

``token.cancel("epoch", "plateau")`` takes three steps. The request is **asked** for: it goes
on record, with the scope that it aims at. It is **granted**, at once where there is one process:
it is then ``token.pending``, the one attribute that loop, scopes and generated code look at. A
checkpoint (every emission is one) **delivers** it by unwinding to that scope, which absorbs
it; the scopes on the way close as they would have closed anyway.

Source: scopes that absorb only their own cancellation are trio's
``CancelScope``; tokens that are handed around and linked are .NET's
``CancellationToken``.
"""

from .records import Cancellation, Origin, Outcome, Request, Unwind
from .scope import CLOSING_CODE, Scope, is_closing, runs_in
from .token import HISTORY, CancellationToken

__all__ = [
    "CLOSING_CODE",
    "HISTORY",
    "Cancellation",
    "CancellationToken",
    "Origin",
    "Outcome",
    "Request",
    "Scope",
    "Unwind",
    "is_closing",
    "runs_in",
]
