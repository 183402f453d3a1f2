"""Telling an error of a collective, which another process may be the reason of, from others."""

from __future__ import annotations

from torch import distributed as dist

_SIGNS = (
    *("gloo/", "Gloo", "NCCL", "ncclSystemError", "ProcessGroup", "c10d", "Connection closed by"),
    *("Connection reset by peer", "Broken pipe", "Connection refused", "Socket Timeout"),
)
"""What the messages say: gloo raises plain ``RuntimeError``."""


def is_of_transport(error: BaseException) -> bool:
    """Whether a connection between ranks has broken, as far as the exception tells.

    One that was raised in handling such an error, or because of it, is taken for it as well.
    """
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, getattr(dist, "DistError", ())):
            return True
        if isinstance(found, (RuntimeError, ConnectionError)):
            text = str(found)
            if any(sign in text for sign in _SIGNS):
                return True
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return False
