"""A rate that was found before, beside a loop written by hand and Lightning's finder."""

from __future__ import annotations

import pytest
from tests_of_jobs import needs, row_by_lightning, same_weights, train_by_hand
from torch.nn.functional import cross_entropy

from eventtrain import AvgStatsCallback, Runner, accuracy

needs("sklearn")

import found_rate


def test_the_search_has_the_losses_of_a_loop_by_hand_whose_rate_rises() -> None:
    (finder, ours), (_, theirs) = found_rate.make(), found_rate.make()
    Runner(finder).fit(steps=60, learn=ours)
    assert 20 < len(finder.lrs) <= 60
    model, opt, losses, rates = theirs.model, theirs.opt, [], iter(finder.lrs)
    while len(losses) < len(finder.lrs):
        for x, y in theirs.data.train_dl:
            if len(losses) == len(finder.lrs):
                break
            opt.param_groups[0]["lr"] = next(rates)
            loss = cross_entropy(model(x), y)
            losses.append(loss.item())
            loss.backward()
            opt.step()
            opt.zero_grad()
    assert finder.losses == pytest.approx(losses, rel=1e-5)


def test_the_search_leaves_no_trace_and_the_fit_has_the_rate() -> None:
    (finder, ours), (_, theirs) = found_rate.make(), found_rate.make()
    Runner(finder).fit(steps=60, learn=ours)
    rate = finder.suggestion.steepest
    for learn in (ours, theirs):
        learn.opt.param_groups[0]["lr"] = rate
    Runner().fit(3, ours)
    train_by_hand(theirs, lambda model, batch: cross_entropy(model(batch[0]), batch[1]), 3)
    assert same_weights(ours.model, theirs.model)


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_with_its_rate_it_learns_as_well_as_with_that_of_lightning() -> None:
    needs("lightning")
    import found_rate_lightning
    from lightning.pytorch.tuner import Tuner

    finder, learn = found_rate.make()
    Runner(finder).fit(steps=60, learn=learn)
    learn.opt.param_groups[0]["lr"] = finder.suggestion.steepest
    row = Runner(AvgStatsCallback(accuracy)).fit(5, learn).history[-1]
    trainer, model, *loaders = found_rate_lightning.make()
    found = Tuner(trainer).lr_find(model, *loaders, min_lr=1e-3, max_lr=100, num_training=60)
    model.lr = found.suggestion()
    expected = row_by_lightning(trainer, model, *loaders)
    assert row["valid_accuracy"] > expected["valid_accuracy"] - 0.1
