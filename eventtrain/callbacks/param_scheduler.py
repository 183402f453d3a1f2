"""Optimizer settings as functions of how much of the fit is done."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import optimizer_name, real_number, whole_number
from ..callback import Callback, handler, listify
from ..param_groups import groups_with, optimizer_for, set_field
from ..priorities import POLICY
from .shared.fit_length import FitLength, fit_length, other_length, share_done

if TYPE_CHECKING:
    from ..runner import Runner
    from ..state import RunState

Schedule = Callable[[Any], Any]
"""``schedule(position)``: the value when ``position`` of the way, from 0 to 1, is done."""


class ParamScheduler(Callback):
    """Sets a field of the optimizer's parameter groups before every training batch.

    The position is ``run.n_epochs / run.epochs``: 0 at the first batch, and short of 1 by one
    batch's share at the last. Where a callback ends the fit sooner (``MaxSteps``), or
    ``total_steps`` is given, it is the share of these steps that have been taken.
    It is worked out anew for every batch, so a resumed fit goes on where it was, and
    every fit begins at 0 again. Validation and prediction change nothing.

    After the fit the field keeps the value that was set last, as with torch's schedulers.

    Several can be used at once, one for each field: the callback of the field
    ``lr`` is called ``param_scheduler_lr``, and so on.

    Args:
        pname: The field: ``"lr"``, ``"weight_decay"``, or any other that the optimizer has.
            ``"momentum"`` is the first of ``betas`` in Adam and its kin.
        sched_funcs: A function of the position, used for all groups, or a sequence
            of them, one a group. One for all serves groups that are added during the fit too.
        total_steps: Steps of the optimizer to span; the last value stays when more come. Needed
            where neither the loader knows its length nor a callback ends the fit after a number
            of steps. Default: those of the fit. Of several optimizers, the steps of all count.
        optimizer: Which of several optimizers, ``"g"`` say: the callback is called
            ``param_scheduler_lr_g`` then. Default ``None``, for the one that there is.

    Raises:
        TypeError: ``pname`` is no text, or a schedule cannot be called. In ``begin_fit``: the
            optimizer has no parameter groups.
        ValueError: There is no schedule. In ``begin_fit``: the optimizer has no such field,
            or another number of groups, or it is not known where the fit ends.
        CheckpointError: A fit is resumed that had another number of steps, without
            ``total_steps``.

    Source: the lesson on callbacks of fast.ai's course "Deep Learning from the Foundations".
    """

    priority = POLICY

    def __init__(
        self,
        pname: str,
        sched_funcs: Schedule | Iterable[Schedule],
        *,
        total_steps: int | None = None,
        optimizer: str | None = None,
    ) -> None:
        if not isinstance(pname, str):
            raise TypeError(f"pname must be the name of an optimizer's field, got {pname!r}")
        if pname == "params":
            raise ValueError("pname must name a setting; 'params' holds the parameters themselves")
        self.pname = pname
        self.sched_funcs: list[Schedule] = listify(sched_funcs)
        self._is_shared = callable(sched_funcs)
        if not self.sched_funcs:
            raise ValueError("sched_funcs is empty: pass one function, or one for each group")
        for schedule in self.sched_funcs:
            _check_schedule(schedule)
        if total_steps is not None:
            total_steps = whole_number("total_steps", total_steps, 1)
        self.total_steps = total_steps
        self._length: FitLength | None = None
        self.optimizer = optimizer_name(optimizer)
        self.name = f"param_scheduler_{pname}" + ("" if optimizer is None else f"_{optimizer}")

    def begin_fit(self, run: Runner) -> None:
        """See that the optimizer has the field, and where the fit ends."""
        self._schedules_for(groups_with(self._opt_of(run), self.pname, "ParamScheduler"))
        self._length = fit_length(run)
        if self._steps_in(self._length) is None and run.epochs != 0:
            raise ValueError(
                f"ParamScheduler({self.pname!r}) cannot tell where this fit ends: the training "
                "loader does not know its length. Pass ParamScheduler(..., total_steps=), or have "
                "MaxSteps end the fit"
            )

    def _opt_of(self, run: RunState) -> Any:
        return optimizer_for(run, self.optimizer, "ParamScheduler")

    def _steps_in(self, length: FitLength) -> int | None:
        return length.steps if self.total_steps is None else self.total_steps

    @handler(during="train")
    def begin_batch(self, run: Runner) -> None:
        """Set the field for this batch."""
        assert self._length is not None
        position = share_done(run, self._length, self.total_steps)
        groups = self._opt_of(run).param_groups
        for group, schedule in zip(groups, self._schedules_for(groups), strict=True):
            set_field(group, self.pname, schedule(position))

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps the schedule spans."""
        return {} if self._length is None else {"steps": self._steps_in(self._length)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: the position follows from the run's counters."""

    def why_not_load(self, state: Mapping[str, Any], run: RunState) -> str | None:
        """Say whether the fit has another length than the one that was saved."""
        if self.total_steps is not None:
            return None
        name = f"ParamScheduler({self.pname!r})"
        return other_length(name, state["steps"], fit_length(run).steps)

    def _schedules_for(self, groups: Sequence[dict[str, Any]]) -> list[Schedule]:
        if self._is_shared:
            return self.sched_funcs * len(groups)
        if len(self.sched_funcs) != len(groups):
            raise ValueError(
                f"ParamScheduler({self.pname!r}) has {len(self.sched_funcs)} schedules for "
                f"{len(groups)} groups: pass one function for all, or one for each"
            )
        return self.sched_funcs


def _check_schedule(schedule: Any) -> None:
    if not callable(schedule):
        raise TypeError(f"a schedule must be a function of the position, got {schedule!r}")


def sched_none(start: Any, end: Any = None) -> Schedule:
    """Return a schedule that stays at ``start``; ``end`` is not used."""
    return partial(_stay, start)


def sched_lin(start: float, end: float) -> Schedule:
    """Return a schedule that goes from ``start`` to ``end`` in a straight line.

    Like all schedules here it takes a float, or a tensor of any shape, and
    returns the same.

    Raises:
        TypeError: ``start`` or ``end`` is no number.
    """
    _check_ends(start, end)
    return partial(_go_straight, start, end)


def sched_cos(start: float, end: float) -> Schedule:
    """Return a schedule that goes from ``start`` to ``end`` along half a cosine, flat at both ends.

    Raises:
        TypeError: ``start`` or ``end`` is no number.

    Source: Loshchilov and Hutter 2017, SGDR (arXiv:1608.03983).
    """
    _check_ends(start, end)
    return partial(_follow_cosine, start, end)


def sched_exp(start: float, end: float) -> Schedule:
    """Return a schedule that goes from ``start`` to ``end`` by equal factors.

    Raises:
        TypeError: ``start`` or ``end`` is no number.
        ValueError: One of them is 0, or they differ in sign.
    """
    _check_ends(start, end)
    if not start * end > 0:
        raise ValueError(
            f"sched_exp needs start and end of one sign and other than 0, got {start} and {end}"
        )
    return partial(_multiply, start, end)


# The schedules themselves, here: those inside of another function could not be pickled.


def _stay(value: Any, position: Any) -> Any:
    return value


def _go_straight(start: Any, end: Any, position: Any) -> Any:
    return start + position * (end - start)


def _follow_cosine(start: Any, end: Any, position: Any) -> Any:
    cos = torch.cos if isinstance(position, Tensor) else math.cos
    return start + (1 + cos(math.pi * (1 - position))) * (end - start) / 2


def _multiply(start: Any, end: Any, position: Any) -> Any:
    return start * (end / start) ** position


def _check_ends(start: Any, end: Any) -> None:
    for name, value in (("start", start), ("end", end)):
        if not isinstance(value, Tensor):
            real_number(name, value)


def combine_scheds(pcts: Iterable[float], scheds: Iterable[Schedule]) -> Schedule:
    """Return a schedule made of several, one after the other.

    Args:
        pcts: The share of the way that each takes; positive, with a sum of 1.
        scheds: As many schedules. Each is given its own position from 0 to 1.

    Raises:
        TypeError: A share is no number, or a schedule cannot be called.
        ValueError: The shares do not add up, or there are more or fewer of them than
            schedules.
    """
    shares, schedules = [real_number("each of pcts", pct) for pct in listify(pcts)], listify(scheds)
    for each in schedules:
        _check_schedule(each)
    if len(shares) != len(schedules):
        raise ValueError(f"combine_scheds got {len(shares)} pcts for {len(schedules)} scheds")
    if not all(share > 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"pcts must be positive and have a sum of 1, got {shares}")
    starts = [0.0, *accumulate(shares[:-1])]
    return partial(_one_after_the_other, list(zip(starts, shares, schedules, strict=True)))


def _one_after_the_other(parts: Sequence[tuple[float, float, Schedule]], position: Any) -> Any:
    if not isinstance(position, Tensor):
        start, share, chosen = parts[max(bisect_right(parts, position, key=_start_of) - 1, 0)]
        return chosen((position - start) / share)
    value: Any = torch.zeros_like(position)
    for index, (start, share, part) in enumerate(parts):
        within = part((position - start) / share)
        value = within + value if index == 0 else torch.where(position >= start, within, value)
    return value


def _start_of(part: tuple[float, float, Schedule]) -> float:
    return part[0]


def cos_1cycle_anneal(start: float, high: float, end: float) -> list[Schedule]:
    """Return the two schedules of a cycle: cosines from ``start`` to ``high`` and on to ``end``.

    They are made for ``combine_scheds``:
    ``combine_scheds([0.3, 0.7], cos_1cycle_anneal(0.1, 0.5, 0.01))``.

    Source: Smith and Topin 2018, Super-Convergence (arXiv:1708.07120).
    """
    return [sched_cos(start, high), sched_cos(high, end)]
