"""Whether what a snapshot holds fits a run: asked before anything of the run is changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..data.sharding import shares_of
from ..errors import CheckpointError
from ..state import RunState
from ..submodules import fits_into
from .loader_form import common_form, form_differences, keeps_order, loader_form
from .loader_place import cannot_be_brought
from .names import under_names_of
from .optimizer_state import check_optimizer


def check_fits(content: Mapping[str, Any], run: RunState, origin: str) -> None:
    """See that a run can go on from a snapshot.

    Args:
        content: What ``take_snapshot`` returned.
        run: It has not begun yet; nothing of it is changed.
        origin: Where the snapshot comes from, for messages.

    Raises:
        CheckpointError: It lies behind the last epoch or step, is of another model, loss function,
            optimizer or training loader, or holds the state of callbacks that the run lacks, or
            that does not fit them.
    """
    _check_extent(content, run, origin)
    model = content.get("training_model", content["model"])
    _check_module("model", model, state_of(run.model), origin)
    if content["loss_func"]:  # a handler may have put one without state in its place for a while
        own = state_of(run.loss_func)
        _check_module("loss function", content["loss_func"], own, origin)
    check_optimizer(content, run, origin, may_lack_groups=True)
    _check_valid_names(content, run, origin)
    _check_loaders(content, run, origin)
    missing = sorted(set(content["callbacks"]) - {callback.name for callback in run.cbs})
    if missing:
        raise CheckpointError(
            f"{origin} holds the state of callbacks that this run lacks: "
            f"{', '.join(missing)}. Resume with the callbacks of the run that saved it"
        )
    for callback in run.cbs:
        state = content["callbacks"].get(callback.name)
        reason = callback.why_not_load(state, run) if state else None
        if reason is not None:
            raise CheckpointError(f"{origin} does not fit this run: {reason}")


def _check_extent(content: Mapping[str, Any], run: RunState, origin: str) -> None:
    position, steps = content["position"], content["counters"]["steps"]
    is_within = position["phase"] is not None
    if run.epochs is not None and is_within and position["epoch"] >= run.epochs:
        raise CheckpointError(
            f"{origin} was taken in epoch {position['epoch']}, counted from 0, and a fit of "
            f"{run.epochs} epochs ends before that: ask for {position['epoch'] + 1} or more"
        )
    if run.total_steps is not None and steps > run.total_steps:
        raise CheckpointError(
            f"{origin} was taken after {steps} steps, and a fit of {run.total_steps} ends before "
            f"that: ask for {steps} or more"
        )
    every = content.get("validate_every")  # earlier formats lack it
    if (every is None) != (run.validate_every is None):
        was = "an epoch each" if every is None else f"those of validate_every={every}"
        remedy = "without validate_every" if every is None else f"with validate_every={every}"
        raise CheckpointError(
            f"{origin} has rows in its history that are {was}, and those of this fit would be "
            f"others: resume {remedy}"
        )


def state_of(part: Any) -> dict[str, Any]:
    """Return the state dictionary of a part of a learner, empty where it has none."""
    state = part.state_dict() if hasattr(part, "state_dict") else {}
    return state if isinstance(state, OrderedDict) else dict(state)


def _check_module(part: str, saved: Mapping[str, Any], own: Mapping[str, Any], origin: str) -> None:
    saved = under_names_of(own, saved)
    strange = [f"{key} is missing in the {part}" for key in saved if key not in own]
    strange += [f"{key} is missing in the checkpoint" for key in own if key not in saved]
    shared = ((key, own[key], value) for key, value in saved.items() if key in own)
    strange += [text for each in shared if (text := _difference(*each))]
    if strange:
        more = f", and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise CheckpointError(f"{origin} is of another {part}: {'; '.join(strange[:3])}{more}")


def _check_valid_names(content: Mapping[str, Any], run: RunState, origin: str) -> None:
    """See that columns and loaders go by the same names; one loader alone may come and go."""
    own, saved = list(run.valid_loaders), content.get("valid_names", [None])  # of earlier formats
    for names in (own, saved):
        if own != saved and any(name is not None for name in names):
            was = ", ".join(map(repr, saved)) if saved != [None] else "one without a name"
            raise CheckpointError(
                f"{origin} was saved with other validation loaders ({was or 'none'}): resume with "
                "those, by the same names and in the same order, or begin a new fit with its "
                "weights, model.load_state_dict(load_checkpoint(path)['model'])"
            )
    count = 1 + max(len(saved), 1)
    lists = [content.get("loaders"), *(content[key] for key in ("random", "phase_start"))]
    told = [each["loaders"] if isinstance(each, Mapping) else each for each in lists]
    is_of_them = content.get("valid_name") in (*saved, None)
    if any(each is not None and len(each) != count for each in told) or not is_of_them:
        raise CheckpointError(
            f"{origin} is whole, but what it tells of validation loaders contradicts itself: it "
            "was made by another program, or changed: resume from another one"
        )


def _check_loaders(content: Mapping[str, Any], run: RunState, origin: str) -> None:
    """See that no rows would be skipped or repeated; a validation loader may be another."""
    position = content["position"]
    phase = position["phase"] if position["batch"] else None  # in which rows are done
    saved = content.get("loaders", [None, None])  # earlier formats do not tell
    worlds = content.get("world_size", 1), run.world.size
    valid = list(run.valid_loaders.values()) or [None]
    done = content.get("valid_name")
    place = list(run.valid_loaders).index(done) if done is not None else 0
    each = (("train", 0, run.data.train_dl), ("validate", 1 + place, valid[place]))
    for name, index, loader in each:
        if name not in ("train", phase) or saved[index] is None:
            continue
        if loader is None:
            raise CheckpointError(
                f"{origin} was taken in validation, and there is no loader for it"
            )
        is_shared = shares_of(loader) is not None
        if name == phase and worlds[0] != worlds[1] and not is_shared:
            raise cannot_be_brought(loader, name, worlds, origin)
        was, now = saved[index], loader_form(loader)
        if max(worlds) > 1 and not is_shared:
            is_same = worlds[0] == worlds[1]
            was, now = (common_form(form, is_same_world=is_same) for form in (was, now))
        differences = form_differences(was, now)
        if differences:
            raise CheckpointError(
                f"{origin} was saved with another {name} loader, and rows would be skipped or "
                f"repeated: {'; '.join(differences)}. Resume with the loader of the run that saved "
                "it; or begin a new fit with its weights, "
                "model.load_state_dict(load_checkpoint(path)['model'])"
            )
        if name == phase and not keeps_order(loader):
            raise CheckpointError(
                f"{origin} was taken in the middle of a phase, and nobody knows which rows were "
                f"done: the {name} loader has in_order=False. Resume from a checkpoint that was "
                "taken between epochs, or use in_order=True"
            )


def _difference(key: str, own: Any, saved: Any) -> str:
    """Say in what two tensors differ that must be alike; empty where they do not."""
    if not isinstance(own, Tensor):
        return ""
    # Extra state is a module's own business, and a lazy parameter takes the shape that it gets.
    if key.endswith("_extra_state") or nn.parameter.is_lazy(own):
        return ""
    if not isinstance(saved, Tensor):
        return f"{key} is a tensor, and {type(saved).__name__} in the checkpoint"
    if own.shape != saved.shape:
        return f"{key} has shape {list(own.shape)}, and {list(saved.shape)} in the checkpoint"
    if own.dtype != saved.dtype:  # torch would convert it, and the run would go on as another
        return f"{key} is {own.dtype}, and {saved.dtype} in the checkpoint"
    if not fits_into(own, saved):
        return f"{key} is one number in several places, and several numbers in the checkpoint"
    return ""
