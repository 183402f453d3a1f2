from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from eventtrain.checkpoints.random_state import random_state
from eventtrain.checkpoints.rank_states import (
    derived_state,
    for_another_world,
    own_part,
    with_own_part,
)
from eventtrain.errors import CheckpointError


def content_of(rank: int) -> dict[str, Any]:
    model: Any = OrderedDict(w=torch.ones(2), mean=torch.full((2,), float(rank)))
    model._metadata = {"": {"version": 1}}
    torch.manual_seed(rank)
    numbers = {"global": random_state(), "loaders": [{"order": rank}, None]}
    return {
        "model": model,
        "opt": {"state": {}},
        "position": {"epoch": 1, "phase": "train", "batch": 3},
        "gradients": {"w": torch.full((2,), float(rank)), "v": None},
        "callbacks": {"a": {"rank": rank}, "b": {"rank": rank}},
        "random": numbers,
        "phase_start": numbers,
        "last_batch": f"of {rank}",
    }


def torch_seed_of(content: dict[str, Any]) -> Any:
    return content["random"]["global"]["torch"]


def test_a_rank_s_own_part_holds_no_weights() -> None:
    own = own_part(content_of(1), ["mean"])
    assert "model" not in own
    assert "opt" not in own
    assert list(own["model_buffers"]) == ["mean"]


def test_rank_zero_s_content_and_a_rank_s_own_part_are_that_rank_s_content() -> None:
    own = content_of(1)
    found = with_own_part(content_of(0), own_part(own, ["mean"]))
    assert torch.equal(found["model"]["mean"], own["model"]["mean"])
    assert found["model"]._metadata == {"": {"version": 1}}
    assert found["callbacks"] == own["callbacks"]
    assert torch.equal(torch_seed_of(found), torch_seed_of(own))
    assert found["last_batch"] == "of 1"


def test_where_averages_were_validated_buffers_are_those_that_are_trained() -> None:
    content = {**content_of(0), "training_model": {"mean": torch.zeros(2)}}
    own = own_part({**content_of(1), "training_model": {"mean": torch.ones(2)}}, ["mean"])
    found = with_own_part(content, own)
    assert found["training_model"]["mean"].tolist() == [1, 1]
    assert found["model"] is content["model"]


@pytest.mark.parametrize("own", [{}, {"model_buffers": 3}])
def test_a_part_of_another_form_is_refused(own: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="lacks its buffers"):
        with_own_part(content_of(0), own)


def test_fewer_ranks_share_the_gradients_that_waited_and_keep_their_numbers() -> None:
    contents = [content_of(rank) for rank in range(4)]
    found = for_another_world(contents, 1, 2, {})
    assert found["gradients"]["w"].tolist() == [1.5, 1.5]
    assert found["gradients"]["v"] is None
    assert torch.equal(torch_seed_of(found), torch_seed_of(contents[1]))
    assert found["random"]["loaders"] == contents[0]["random"]["loaders"]
    assert found["model"]["mean"].tolist() == [0, 0]  # those of rank 0
    assert found["last_batch"] is None


def test_a_rank_that_was_not_there_gets_numbers_of_its_own_the_same_each_time() -> None:
    contents = [content_of(rank) for rank in range(2)]
    new = [torch_seed_of(for_another_world(contents, rank, 4, {})) for rank in range(4)]
    again = [torch_seed_of(for_another_world(contents, rank, 4, {})) for rank in range(4)]
    for one, other in zip(new, again, strict=True):
        assert torch.equal(one, other)
    assert len({bytes(each.tolist()) for each in new}) == 4


def test_a_callback_says_with_which_state_a_rank_goes_on() -> None:
    contents = [content_of(rank) for rank in range(3)]

    def summed(states: Any, rank: int, size: int, phase: str | None) -> dict[str, Any]:
        return {"sum": sum(each["rank"] for each in states), "at": (rank, size, phase)}

    found = for_another_world(contents, 1, 2, {"a": summed})
    assert found["callbacks"] == {"a": {"sum": 3, "at": (1, 2, "train")}, "b": {"rank": 1}}


def test_gradients_that_are_not_alike_are_refused() -> None:
    contents = [content_of(rank) for rank in range(2)]
    contents[1]["gradients"]["w"] = torch.ones(5)
    with pytest.raises(CheckpointError, match="gradients of w are not alike"):
        for_another_world(contents, 0, 1, {})


def test_derived_numbers_are_states_that_can_be_set() -> None:
    torch.manual_seed(0)
    found = derived_state(random_state(), 3)
    torch.set_rng_state(found["torch"])
    first = torch.rand(3)
    torch.set_rng_state(derived_state({**found, "torch": found["torch"]}, 4)["torch"])
    assert not torch.equal(first, torch.rand(3))
