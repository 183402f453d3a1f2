"""The random numbers of a fit, fixed; deterministic algorithms, if asked for."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..arguments import flag, whole_number
from ..callback import Callback
from ..priorities import BEFORE_EVERYONE

if TYPE_CHECKING:
    from ..runner import Runner

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


class Seed(Callback):
    """Seeds Python, NumPy (where it has been imported) and torch on all devices in ``begin_fit``.

    It runs before everyone else; among those at ``BEFORE_EVERYONE``, in the order in which the
    runner got them, so put it first. Every fit is seeded anew. ``run.validate`` and ``run.predict``
    are not: evaluating a model is no reason to disturb the random numbers of its surroundings.
    A model's initial weights were drawn before the fit, and a loader's own generator is
    the loader's: seed those yourself.

    On several processes each gets a stream of its own, of ``seed`` plus its rank: what is dropped
    out of a model, and how samples are augmented, is to differ from process to process. The order
    of the data is not: it has a seed that all share (``TensorLoader``, ``GlobalBatchSampler``).

    A fit that is resumed gets the random numbers of its checkpoint, which are put back after
    ``begin_fit``.

    Args:
        seed: From 0 to 2**32 - 1.
        deterministic: From ``begin_fit`` to ``after_fit``, also let torch use deterministic
            algorithms only (and raise where there is none), with cuDNN's benchmark off, and set
            ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` in the environment unless it is set. cuBLAS may
            have read it by then: on a GPU, set it before Python starts. All of it is put
            back after the fit. Default ``False``.

    Raises:
        TypeError: ``seed`` is no whole number, or ``deterministic`` neither true nor false.
        ValueError: ``seed`` is out of range.
    """

    priority = BEFORE_EVERYONE

    def __init__(self, seed: int, deterministic: bool = False) -> None:
        self.seed = whole_number("seed", seed, 0)
        if self.seed >= 2**32:
            raise ValueError(f"seed must be at most 2**32 - 1, got {seed}")
        self.deterministic = flag("deterministic", deterministic)
        self._put_back: Callable[[], None] | None = None

    def begin_fit(self, run: Runner) -> None:
        """Seed everything."""
        seed = (self.seed + run.world.rank) % 2**32
        random.seed(seed)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed(seed)
        torch.manual_seed(seed)
        if self.deterministic:
            self._put_back = _settings()
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.benchmark = False
            os.environ.setdefault(_CUBLAS, ":4096:8")

    def after_fit(self, run: Runner) -> None:
        """Put torch's settings back."""
        put_back, self._put_back = self._put_back, None
        if put_back is not None:
            put_back()


def _settings() -> Callable[[], None]:
    """Return a function that puts torch's settings back to what they are now."""
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    workspace = os.environ.get(_CUBLAS)

    def put_back() -> None:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if workspace is None:
            os.environ.pop(_CUBLAS, None)
        else:
            os.environ[_CUBLAS] = workspace

    return put_back
