"""Mean, spread and share of near-zeros of the activations, layer by layer."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..arguments import real_number, whole_number
from ..callback import Callback, handler
from ..distributed.reductions import OneProcess
from ..priorities import BEFORE_EVERYONE, METRICS
from .shared.plots import shown_figure, tidy
from .shared.readings import stack_where_possible, to_host

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..runner import Runner

STATS = ("mean", "std", "zeros")
Chosen = Iterable[str | nn.Module] | Callable[[str, nn.Module], bool] | None


class ActivationStats(Callback):
    """Measures what chosen modules return while the model trains.

    Forward hooks are there from ``begin_train`` to ``after_train``, which fires
    whatever happens; outside of it the model has none of them. They return nothing, and
    measure under ``no_grad`` in float32, so the training is the same. Of a module that
    returns a tuple the first tensor counts; one that returns no floating-point tensor
    is left out. A module that is called several times in a batch gives the mean of its
    calls. Calls outside of the loop's own forward pass (recomputation in the backward
    pass) do not count.

    The numbers stay on the device until the phase ends or somebody asks. With a compiled
    model, hooks may make it compile again: choose modules of the model it was made from.

    On several processes each measures its shares, and the numbers are put together when the
    training phase ends: then they are those of whole batches. Where processes have not called the
    same modules in the same batches, each keeps its own.

    Source: the hooks and the picture follow Jeremy Howard's lessons (fastai part 2).

    Args:
        modules: Names, modules, or a function ``choose(name, module)``. ``None``
            (default) takes all modules that have no children.
        every: Training batches from one measurement to the next, 1 by default.
        near_zero: A value counts as zero up to this absolute value, 1e-3 by default.
        bins: Bins of a histogram of each batch's values. ``None`` (default): none.
        limits: Least and largest value of the histogram, (-5, 5) by default. What lies
            outside is counted in the first and the last bin; NaN is not counted.

    Attributes:
        steps: ``run.n_iter`` of each measured batch.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.
        ValueError: When training begins: a name or module is not in the model.
    """

    held_in_run = ("_handles",)
    priority = METRICS

    def __init__(
        self,
        modules: Chosen = None,
        every: int = 1,
        near_zero: float = 1e-3,
        bins: int | None = None,
        limits: tuple[float, float] = (-5.0, 5.0),
    ) -> None:
        if isinstance(modules, (str, nn.Module)):
            modules = [modules]  # a Sequential could be iterated over
        if modules is not None and not callable(modules):
            if not isinstance(modules, Iterable):
                raise TypeError(
                    "modules must be names, modules or a function choose(name, module), "
                    f"got {modules!r}"
                )
            modules = list(modules)
        self.modules = modules
        self.every = whole_number("every", every, 1)
        if real_number("near_zero", near_zero) < 0:
            raise ValueError(f"near_zero must be 0 or more, got {near_zero!r}")
        self.near_zero = near_zero
        self.bins = None if bins is None else whole_number("bins", bins, 1)
        self.limits = _interval(limits)
        self._handles: list[Any] = []
        self._start()

    def _start(self) -> None:
        self._is_measuring = False
        # What a batch gave so far, float [3] or [3 + bins] for each call of a module.
        self._now: dict[str, list[Tensor]] = {}
        self._sizes: dict[str, int] = {}  # how many values these are of
        self._shared = 0  # how many of the measured batches are those of all processes
        # On the device, float [modules, 3 + bins] a batch.
        self._new: list[dict[str, Any]] = []
        self._measured: list[dict[str, Any]] = []

    def begin_fit(self, run: Runner) -> None:
        """Start over."""
        self._start()

    def begin_train(self, run: Runner) -> None:
        """Put the hooks in place."""
        self._remove()
        for name, module in self._choose(run.model).items():
            self._handles.append(module.register_forward_hook(self._hook(name)))

    def begin_batch(self, run: Runner) -> None:
        """Measure this batch, if it is its turn."""
        self._now = {}
        is_turn = run.in_train and run.n_iter % self.every == 0
        self._is_measuring = bool(self._handles) and is_turn

    @handler(priority=BEFORE_EVERYONE)
    def after_pred(self, run: Runner) -> None:
        """Keep what the batch gave; nothing is read from the device."""
        if not self._is_measuring:
            return
        self._is_measuring = False
        if self._now:
            with torch.no_grad():
                stats = stack_where_possible([_mean(calls) for calls in self._now.values()])
            counts = run.world.has_share(run)  # else a row of another process stands in
            sizes = [self._sizes[name] if counts else 0 for name in self._now]
            row = {"step": run.n_iter, "names": list(self._now), "stats": stats}
            self._new.append({**row, "sizes": sizes})
        self._now = {}

    @handler(priority=BEFORE_EVERYONE)
    def after_train(self, run: Runner) -> None:
        """Take the hooks away, and read the numbers; put those of all processes together."""
        self._remove()
        rows = self._read()[self._shared :]
        self._shared = len(self._measured)
        if run.outcome != "failed":
            _put_together(rows, run.world)

    def after_fit(self, run: Runner) -> None:
        """See that no hook is left."""
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._is_measuring = False
        self._now = {}

    def _choose(self, model: Any) -> dict[str, nn.Module]:
        named = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
        if self.modules is None:
            return {name: m for name, m in named.items() if next(m.children(), None) is None}
        if callable(self.modules):
            return {name: m for name, m in named.items() if self.modules(name, m)}
        chosen = {}
        for each in self.modules:
            found = [name for name, m in named.items() if each is m or each == name]
            if not found:
                what = repr(each) if isinstance(each, str) else type(each).__name__
                raise ValueError(
                    f"ActivationStats was to watch {what}, which is not in the model; "
                    f"it has {', '.join(name for name in named if name) or 'no modules'}"
                )
            chosen[found[0]] = named[found[0]]
        return chosen

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._is_measuring:
                values = _first_tensor(output)
                if values is not None:
                    self._now.setdefault(name, []).append(self._measure(values))
                    self._sizes[name] = values.numel()

        return hook

    def _measure(self, values: Tensor) -> Tensor:
        with torch.no_grad():
            values = values.detach().float()
            spread, mean = torch.std_mean(values, correction=0)
            zeros = (values.abs() <= self.near_zero).float().mean()
            numbers = torch.stack([mean, spread, zeros])
            if self.bins is None:
                return numbers
            low, high = self.limits
            counts = torch.histc(values.clamp(low, high), self.bins, low, high)
            return torch.cat([numbers, counts])

    def _read(self) -> list[dict[str, Any]]:
        if self._new:
            for row in to_host(self._new):
                values = dict(zip(row["names"], row["stats"], strict=True))
                sizes = dict(zip(row["names"], row["sizes"], strict=True))
                self._measured.append({"step": row["step"], "values": values, "sizes": sizes})
            self._new = []
        return self._measured

    @property
    def steps(self) -> list[int]:
        """``run.n_iter`` of each measured batch."""
        return [row["step"] for row in self._read()]

    @property
    def names(self) -> list[str]:
        """Names of the measured modules, in the order in which they were first called."""
        return list(dict.fromkeys(name for row in self._read() for name in row["values"]))

    def values(self, module: str, stat: str = "mean") -> list[float]:
        """Return one number of a module's activations for each measured batch.

        Args:
            module: One of ``names``; ``""`` is the model itself.
            stat: ``"mean"``, ``"std"`` (of the population) or ``"zeros"`` (share of
                near-zeros, in [0, 1]).

        Returns:
            One float a batch; NaN where the module was not called.

        Raises:
            KeyError: The module was never measured.
            ValueError: ``stat`` is none of the three.
        """
        if stat not in STATS:
            raise ValueError(f"stat must be one of {', '.join(STATS)}, got {stat!r}")
        return [row[STATS.index(stat)] for row in self._rows_of(module)]

    def histogram(self, module: str) -> Tensor:
        """Return how many values fell into each bin, float32 [measured batches, bins].

        Raises:
            KeyError: The module was never measured.
            ValueError: No histograms were kept.
        """
        if self.bins is None:
            raise ValueError("no histograms were kept: make it with ActivationStats(bins=40)")
        return torch.tensor([row[len(STATS) :] for row in self._rows_of(module)])

    def _rows_of(self, module: str) -> list[list[float]]:
        if not any(module in row["values"] for row in self._read()):
            raise KeyError(f"no module {module!r} was measured; there are {self.names}")
        absent = [math.nan] * (len(STATS) + (self.bins or 0))
        return [row["values"].get(module, absent) for row in self._read()]

    def plot(self) -> list[Axes]:
        """Draw means, standard deviations and shares of near-zeros over the batches."""
        figure = shown_figure("ActivationStats.plot", (14, 4))
        titles = ("mean", "standard deviation", f"share within {self.near_zero:g} of zero")
        axes: list[Axes] = list(figure.subplots(1, len(STATS)))
        for ax, stat, title in zip(axes, STATS, titles, strict=True):
            for name in self.names:
                ax.plot(self.steps, self.values(name, stat), label=name or "model", linewidth=1)
            ax.set(xlabel="training batches", title=title)
            tidy(ax)
        axes[-1].set_ylim(-0.02, 1.02)
        if self.names:
            axes[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        return axes

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured, read from the device."""
        return {"measured": [dict(row) for row in self._read()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after another's measurements."""
        self._new, self._measured = [], [dict(row) for row in state["measured"]]
        self._shared = len(self._measured)


def _put_together(rows: list[dict[str, Any]], world: OneProcess) -> None:
    """Make what each process has measured of its shares that of whole batches; collective."""
    if world.size == 1:
        return
    form = zlib.crc32(repr([(row["step"], list(row["values"])) for row in rows]).encode())
    if len({row[0] for row in world.gather([form])}) > 1 or not rows:
        return
    own = [
        [float(row["sizes"][name]), *stats] for row in rows for name, stats in row["values"].items()
    ]
    gathered = world.gather([number for numbers in own for number in numbers])
    ranks = torch.tensor(gathered, dtype=torch.float64).view(world.size, len(own), -1)
    whole = iter(_of_all(ranks).tolist())
    for row in rows:
        row["values"] = {name: next(whole) for name in row["values"]}


def _of_all(ranks: Tensor) -> Tensor:
    """Combine numbers of shares.

    Args:
        ranks: float64 [processes, measurements, 1 + 3 + bins]; first how many values they are of.

    Returns:
        float64 [measurements, 3 + bins].
    """
    counts_there = ranks[..., :1] > 0
    ranks = torch.where(counts_there, ranks, 0.0)  # what counts for nothing may be NaN
    shares = ranks[..., 0] / ranks[..., 0].sum(0)
    means, spreads, zeros = ranks[..., 1], ranks[..., 2], ranks[..., 3]
    mean = (shares * means).sum(0)
    spread = (shares * (spreads**2 + (means - mean) ** 2)).sum(0).sqrt()
    numbers = torch.stack([mean, spread, (shares * zeros).sum(0)], -1)
    return torch.cat([numbers, ranks[..., 4:].sum(0)], -1)


def _interval(limits: Any) -> tuple[float, float]:
    if not isinstance(limits, (tuple, list)) or len(limits) != 2:
        raise TypeError(f"limits must be two numbers, got {limits!r}")
    low, high = (float(real_number("each of limits", limit)) for limit in limits)
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"limits must be a smaller and a larger number, both finite, got {limits!r}"
        )
    return low, high


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, (tuple, list)):
        output = next((part for part in output if isinstance(part, Tensor)), None)
    usable = isinstance(output, Tensor) and output.is_floating_point() and output.numel()
    return output if usable else None


def _mean(calls: list[Tensor]) -> Tensor:
    return calls[0] if len(calls) == 1 else torch.stack(calls).mean(0)
