"""The order of numbers in memory, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from eventtrain import DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import ChannelsLast, Checkpoint

Fit = Callable[[Runner, Learner], None]


def images() -> Learner:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, 6, 6, generator=generator)
    y = torch.randint(0, 2, (12,), generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = DataBunch(TensorLoader(x, y, bs=4), TensorLoader(x, y, bs=6))
    return Learner(model, opt, nn.functional.cross_entropy, data)


def is_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def test_model_and_inputs_are_channels_last_during_the_fit() -> None:
    learner = images()
    run = Runner(ChannelsLast())
    seen: set[tuple[str | None, bool, bool, bool]] = set()

    @run.on("after_pred")
    def look(run: Runner) -> None:
        conv = run.model[0]
        seen.add((run.phase, is_last(run.xb), is_last(conv.weight), is_last(conv(run.xb))))

    run.fit(1, learner)
    assert seen == {("train", True, True, True), ("validate", True, True, True)}


def test_the_numbers_are_those_of_a_fit_without_it() -> None:
    plain, last = images(), images()
    Runner().fit(3, plain)
    Runner(ChannelsLast()).fit(3, last)
    for own, other in zip(last.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(own, other, atol=1e-5)


def test_the_model_is_put_back_however_the_fit_ends(fit_however_it_ends: Fit) -> None:
    learner = images()
    parameters = list(learner.model.parameters())
    run = Runner(ChannelsLast())
    fit_however_it_ends(run, learner)
    assert learner.model[0].weight.is_contiguous()
    now = list(learner.model.parameters())
    assert all(a is b for a, b in zip(now, parameters, strict=True))


def test_a_model_that_was_channels_last_before_stays_so() -> None:
    learner = images()
    learner.model.to(memory_format=torch.channels_last)
    Runner(ChannelsLast()).fit(1, learner)
    assert is_last(learner.model[0].weight)


def test_inputs_in_dictionaries_and_tuples_are_converted_too() -> None:
    x = torch.randn(4, 3, 6, 6)
    learner = images()
    learner.data = DataBunch([({"image": x, "more": (x, [x]), "rows": x[:, 0, 0]}, x)])
    conv = learner.model[0]
    learner.model.forward = lambda batch: conv(batch["image"])
    learner.loss_func = lambda pred, yb: pred.mean()
    run = Runner(ChannelsLast())
    seen: list[Any] = []
    run.on("after_pred", lambda run: seen.append((run.xb, run.yb)))
    run.fit(1, learner)
    (xb, yb), (more, (in_list,)) = seen[0], (seen[0][0]["more"][0], seen[0][0]["more"][1])
    assert is_last(xb["image"]) and is_last(more) and is_last(in_list)
    assert torch.equal(xb["rows"], x[:, 0, 0])
    assert yb is x


class Fields(dict[str, Any]):
    """A batch that names its image."""

    @property
    def image(self) -> Tensor:
        return self["image"]


class Row(NamedTuple):
    image: Tensor


class Images(list[Tensor]):
    """A list with a name."""

    name = "none"


def test_inputs_keep_their_types() -> None:
    x = torch.randn(2, 3, 6, 6)
    several = Images([x])
    several.name = "cats"
    batch = Fields(image=x, row=Row(x), several=several)
    learner = images()
    learner.data = DataBunch([batch])
    conv = learner.model[0]
    learner.model.forward = lambda batch: conv(batch.image)
    learner.loss_func = lambda pred, yb: pred.mean()
    run = Runner(ChannelsLast())
    seen: list[Any] = []
    run.on("after_pred", lambda run: seen.append(run.xb))
    run.fit(1, learner)
    xb = seen[0]
    assert is_last(xb.image) and is_last(xb["row"].image) and is_last(xb["several"][0])
    assert xb["several"].name == "cats"
    assert not is_last(batch.image) and not is_last(several[0])


def test_an_input_that_needs_no_conversion_is_passed_on_itself() -> None:
    batch = {"image": torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)}
    learner = images()
    learner.data = DataBunch([batch])
    conv = learner.model[0]
    learner.model.forward = lambda batch: conv(batch["image"])
    learner.loss_func = lambda pred, yb: pred.mean()
    run = Runner(ChannelsLast())
    seen: list[Any] = []
    run.on("after_pred", lambda run: seen.append(run.xb))
    run.fit(1, learner)
    assert seen[0] is batch


@pytest.mark.parametrize("channels", [1, 3])
def test_weights_that_lay_otherwise_are_laid_out_so_again(channels: int) -> None:
    learner = images()
    learner.data = DataBunch([(torch.randn(2, channels, 6, 6), torch.zeros(2, dtype=torch.long))])
    conv = learner.model[0] = nn.Conv2d(channels, 4, 3)
    conv.weight.data = torch.randn(channels, 3, 3, 4).permute(3, 0, 1, 2)
    strides, values = conv.weight.stride(), conv.weight.detach().clone()
    run = Runner(ChannelsLast())
    during: list[bool] = []
    run.on("after_pred", lambda run: during.append(is_last(conv.weight)))
    run.on("begin_step", lambda run: run.token.cancel("step"))
    run.fit(1, learner)
    assert during == [True]
    assert conv.weight.stride() == strides
    assert torch.equal(conv.weight, values)


def test_a_buffer_that_was_expanded_keeps_its_values() -> None:
    learner = images()
    mask = torch.tensor([2.0, 3.0]).view(2, 1, 1, 1)
    learner.model[0].register_buffer("mask", mask.expand(2, 5, 4, 4))
    assert Runner(ChannelsLast()).fit(1, learner).outcome == "completed"
    assert torch.equal(learner.model[0].mask, mask.expand(2, 5, 4, 4))


def test_what_has_no_channels_is_left_alone(learner: Learner) -> None:
    run = Runner(ChannelsLast())
    inputs: list[Tensor] = []
    run.on("begin_batch", lambda run: inputs.append(run.xb), during="train")
    expected = [x.data_ptr() for x, _ in learner.data.train_dl]
    assert run.fit(1, learner).outcome == "completed"
    assert [x.data_ptr() for x in inputs] == expected


def test_a_second_fit_and_a_resumed_one_are_fine(tmp_path: Path) -> None:
    whole = images()
    Runner(ChannelsLast()).fit(2, whole)
    run = Runner([ChannelsLast(), Checkpoint(tmp_path)])
    run.fit(1, images())
    learner = images()
    run.fit(2, learner, resume="auto")
    assert torch.equal(learner.model[0].weight, whole.model[0].weight)
    assert learner.model[0].weight.is_contiguous()


def test_outside_of_a_fit_nothing_is_converted() -> None:
    learner = images()
    run = Runner(ChannelsLast())
    inputs: list[Tensor] = []
    run.on("after_pred", lambda run: inputs.append(run.xb))
    run.fit(0, learner)
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert len(inputs) == 4
    assert all(x.is_contiguous() for x in inputs)
