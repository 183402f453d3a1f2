"""Norms of the gradients, in total and of every parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import flag, whole_number
from ..callback import Callback
from ..distributed.reductions import OneProcess
from ..param_groups import stepped_optimizer, stepped_parameters
from ..priorities import METRICS
from .shared.readings import stack_where_possible, to_host

if TYPE_CHECKING:
    from ..runner import Runner

STATS = ("norm", "max", "zeros")
_PLACE = ("epoch", "step", "optimizer")


class GradStats(Callback):
    """Measures the gradients before optimizer steps.

    It does so in ``begin_step``, after gradients have been unscaled and before they
    are clipped; a step that is cancelled before that is not measured. Three numbers
    are taken of each parameter's gradient, in float32 (float64 for float64):

    - ``norm``: the Euclidean norm;
    - ``max``: the largest absolute value;
    - ``zeros``: the share of entries that are exactly 0, in [0, 1].

    They stay on the device until the training phase ends or somebody asks. Of sparse
    gradients the stored values are measured, and all others count as zeros. Of gradients that are
    sharded over several processes each measures its shards, which are put together when the
    training phase ends.

    Of several optimizers, each step measures the gradients of the one that steps, and its name is
    in the row.

    Args:
        every: Optimizer steps from one measurement to the next, 1 by default; each of several
            optimizers counts its own.
        history: Write to ``run.history``, for every epoch, ``grad_norm`` (mean of the
            total norm over the measured steps), ``grad_norm_max`` (its largest value)
            and ``grad_zeros`` (mean share); of several optimizers ``grad_norm_g`` and so on.
            Default ``False``.

    Attributes:
        names: Names of the parameters that have had a gradient.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.
    """

    priority = METRICS

    def __init__(self, every: int = 1, history: bool = False) -> None:
        self.every = whole_number("every", every, 1)
        self.history_written = flag("history", history)
        self._start()

    def _start(self) -> None:
        self._measured: list[dict[str, Any]] = []
        # As above, but with the numbers on the device, float [parameters, 3].
        self._new: list[dict[str, Any]] = []
        self._shared = 0  # how many rows are those of all processes
        self._tries: dict[str | None, int] = {}  # by optimizer

    def begin_fit(self, run: Runner) -> None:
        """Start over."""
        self._start()

    def begin_step(self, run: Runner) -> None:
        """Measure; nothing is read from the device."""
        name = run.stepping
        tries = self._tries[name] = self._tries.get(name, 0) + 1
        if (tries - 1) % self.every:
            return
        grads = _gradients(run)
        if not grads:
            return
        with torch.no_grad():
            stats = stack_where_possible([_measure(grad) for grad in grads.values()])
        sizes = [grad.numel() for grad in grads.values()]
        place: dict[str, Any] = {"epoch": run.epoch, "step": run.steps}
        place |= {} if name is None else {"optimizer": name}
        is_sharded = any(hasattr(grad, "to_local") for grad in grads.values())
        row = {**place, "names": list(grads), "sizes": sizes, "stats": stats}
        self._new.append({**row, "sharded": is_sharded})

    def after_train(self, run: Runner) -> None:
        """Read the epoch's numbers, and put those of all processes together."""
        self._share(run)
        if run.validate_every is None:
            self._write(run, [row for row in self._measured if row["epoch"] == run.epoch])

    def after_row(self, run: Runner) -> None:
        """Write what was measured since the row before, in a fit with ``validate_every``."""
        if run.validate_every is not None:
            self._share(run)
            first = next((row["step"] for row in run.history[-2:-1]), 0)
            self._write(run, [row for row in self._measured if row["step"] >= first])

    def _share(self, run: Runner) -> None:
        """Read what is new, and put it together with that of all processes."""
        if run.outcome != "failed":
            _put_together(
                [row for row in self._read()[self._shared :] if row["sharded"]], run.world
            )
            self._shared = len(self._measured)
        self._read()

    def _write(self, run: Runner, here: list[dict[str, Any]]) -> None:
        if not self.history_written:
            return
        for name in dict.fromkeys(row.get("optimizer") for row in here):
            own = [row for row in here if row.get("optimizer") == name]
            run.history[-1].update(_of_epoch(own, "" if name is None else f"_{name}"))

    def _read(self) -> list[dict[str, Any]]:
        if self._new:
            self._measured += to_host(self._new)
            self._new = []
        return self._measured

    @property
    def names(self) -> list[str]:
        """Names of the parameters that have had a gradient, in the model's order."""
        return list(dict.fromkeys(name for row in self._read() for name in row["names"]))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one row for each measured step; reads from the device what is not read yet.

        Returns:
            ``epoch``, ``step`` (``run.steps`` before it), over all parameters
            ``norm``, ``max`` and ``zeros``, and of several optimizers the name, ``optimizer``.
        """
        return [
            {key: row[key] for key in _PLACE if key in row} | _total(row["stats"], row["sizes"])
            for row in self._read()
        ]

    def values(self, parameter: str, stat: str = "norm") -> list[float]:
        """Return one number of a parameter's gradient for each measured step.

        Args:
            parameter: One of ``names``.
            stat: ``"norm"``, ``"max"`` or ``"zeros"``.

        Returns:
            One float a step; NaN where the parameter had no gradient.

        Raises:
            KeyError: There was never a gradient of that name.
            ValueError: ``stat`` is none of the three.
        """
        if stat not in STATS:
            raise ValueError(f"stat must be one of {', '.join(STATS)}, got {stat!r}")
        if not any(parameter in row["names"] for row in self._read()):
            raise KeyError(f"no gradient of {parameter!r} was measured")
        result, column = [], STATS.index(stat)
        for row in self._read():
            at = row["names"].index(parameter) if parameter in row["names"] else None
            result.append(float("nan") if at is None else row["stats"][at][column])
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured, read from the device."""
        return {"measured": [dict(row) for row in self._read()], "tries": dict(self._tries)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after another's measurements."""
        self._start()
        self._measured = [dict(row) for row in state["measured"]]
        self._shared = len(self._measured)
        tries = state["tries"]  # earlier states have that of one optimizer
        self._tries = dict(tries) if isinstance(tries, dict) else {None: tries}


def _gradients(run: Runner) -> dict[str, Tensor]:
    named = getattr(run.model, "named_parameters", None)
    if named is not None:
        is_one = run.stepping is None
        stepped = () if is_one else {id(p) for p in stepped_parameters(run)}
        return {
            name: p.grad
            for name, p in named()
            if p.grad is not None and (is_one or id(p) in stepped)
        }
    groups = enumerate(getattr(stepped_optimizer(run), "param_groups", ()))
    return {
        f"group{number}.{index}": p.grad
        for number, group in groups
        for index, p in enumerate(group["params"])
        if p.grad is not None
    }


def _measure(grad: Tensor) -> Tensor:
    """Return norm, largest absolute value and share of zeros, float [3] on the device."""
    values = _shard_of(grad)
    if values.is_sparse:
        values = values.coalesce().values()
    exact = torch.float64 if values.dtype in (torch.float64, torch.complex128) else torch.float32
    sizes = values.abs().to(exact)
    # Filled, not copied from the host: a copy would wait for the device.
    largest = sizes.amax() if sizes.numel() else sizes.new_zeros(())
    zeros = 1 - torch.count_nonzero(sizes) / max(grad.numel(), 1)
    return torch.stack([torch.linalg.vector_norm(sizes), largest, zeros.to(exact)])


def _shard_of(grad: Any) -> Tensor:
    """Return what of a gradient is this process's to measure; of one that is whole, all."""
    if not hasattr(grad, "to_local"):
        return grad.detach()  # type: ignore[no-any-return]
    places = zip(grad.device_mesh.get_coordinate(), grad.placements, strict=True)
    is_first = all(place == 0 for place, placement in places if placement.is_replicate())
    shard: Tensor = grad.to_local().detach()
    return shard if is_first else shard.new_empty(0)  # another process has the same


def _put_together(rows: list[dict[str, Any]], world: OneProcess) -> None:
    """Make the numbers of the shards in ``rows`` those of whole gradients; collective."""
    if world.size == 1 or not rows:
        return
    own = torch.tensor([each for row in rows for each in row["stats"]], dtype=torch.float64)
    ranks = torch.tensor(world.gather(own.flatten().tolist()), dtype=torch.float64)
    norms, largest, zeros = ranks.view(world.size, -1, len(STATS)).unbind(-1)
    # Each has taken the zeros of the others' shards for its own.
    shared = [norms.norm(dim=0), largest.amax(0), 1 - (1 - zeros).sum(0)]
    stats = iter(torch.stack(shared, -1).tolist())
    for row in rows:
        row["stats"] = [next(stats) for _ in row["stats"]]


def _of_epoch(rows: list[dict[str, Any]], ending: str) -> dict[str, float]:
    """Combine the steps of an epoch into what its row of the history shows."""
    totals = [_total(row["stats"], row["sizes"]) for row in rows]
    norms = [each["norm"] for each in totals]
    zeros = sum(each["zeros"] for each in totals) / len(totals)
    # torch's max keeps a NaN, Python's may lose it.
    largest = torch.tensor(norms, dtype=torch.float64).max().item()
    mean = sum(norms) / len(norms)
    found = {"grad_norm": mean, "grad_norm_max": largest, "grad_zeros": zeros}
    return {f"{key}{ending}": value for key, value in found.items()}


def _total(stats: list[list[float]], sizes: list[int]) -> dict[str, float]:
    """Combine the numbers of all parameters."""
    table = torch.tensor(stats, dtype=torch.float64)
    weights = torch.tensor(sizes, dtype=torch.float64)
    norm, largest = table[:, 0].norm().item(), table[:, 1].max().item()
    zeros = (table[:, 2] * weights).sum() / weights.sum().clamp(min=1)
    return dict(zip(STATS, (norm, largest, zeros.item()), strict=True))
