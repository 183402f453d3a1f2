"""The state of the global random number generators that a training run draws from."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's global generators.

    Returns:
        ``"python"`` and, where NumPy has been imported, ``"numpy"`` as plain data;
        ``"torch"`` (uint8) for the CPU; ``"cuda"``, a list of uint8 tensors, one a device, and
        ``"mps"`` where they are in use. Nothing waits for a device.
    """
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, *rest = numpy.random.get_state()
        state["numpy"] = (name, torch.from_numpy(keys.astype("int64")), *rest)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to what ``random_state`` returned.

    Generators that the state does not tell of stay as they are, and so do those of
    devices that this machine lacks.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if "numpy" in state:
        import numpy

        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    if "cuda" in state and torch.cuda.is_available():
        for device, each in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(each, device)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def has_drawn_since(state: dict[str, Any]) -> bool:
    """Whether a random number of the CPU was drawn since ``random_state`` returned ``state``."""
    now = random_state()
    return not (
        state["python"] == now["python"]
        and torch.equal(state["torch"], now["torch"])
        and ("numpy" in state) == ("numpy" in now)
        and all(
            torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
            for one, other in zip(state.get("numpy", ()), now.get("numpy", ()), strict=True)
        )
    )
