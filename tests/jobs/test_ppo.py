"""PPO on CartPole, beside a loop written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests_of_jobs import needs

from eventtrain import Callback, CheckpointError, handler
from eventtrain.callbacks import Checkpoint

needs("gymnasium")

import ppo
import ppo_loop
from cart_pole import Moves


def scores_of(run: Any, learn: Any, epochs: int, seed: int) -> list[float]:
    torch.manual_seed(seed)
    return [row["train_score"] for row in run.fit(epochs, learn).history]


def test_weights_and_scores_are_those_of_a_loop_by_hand() -> None:
    run, learn = ppo.make()
    actor, critic = ppo_loop.make()
    scores = scores_of(run, learn, 3, seed=7)
    torch.manual_seed(7)
    assert scores == [score for _, score in ppo_loop.train(actor, critic, 3)]
    for ours, theirs in ((learn.model.actor, actor), (learn.model.critic, critic)):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p, q)


def test_an_advantage_adds_up_what_surprised_until_the_end_of_the_game() -> None:
    torch.manual_seed(0)
    model = ppo.ActorCritic()
    fell, over = torch.zeros(40, dtype=torch.bool), torch.zeros(40, dtype=torch.bool)
    fell[[9, 33]] = over[[9, 20, 33]] = True  # the game that ends with row 20 was cut
    seen, after = torch.randn(40, 4), torch.randn(40, 4)
    moves = Moves(seen, torch.zeros(40, dtype=torch.int64), torch.ones(40), after, fell, over)
    _, advantage, worth = ppo.judged(model, moves)
    with torch.no_grad():
        value, then = model.critic(seen)[:, 0], model.critic(after)[:, 0]
    surprise = 1 + 0.99 * then.where(~fell, torch.tensor(0.0)) - value
    ends = [9, 20, 33, 39]
    for move in range(40):
        rest = surprise[move : next(end for end in ends if end >= move) + 1]
        expected = sum(float(each) * (0.99 * 0.95) ** away for away, each in enumerate(rest))
        assert float(advantage[move]) == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(worth, advantage + value)


def test_it_learns_to_balance() -> None:
    scores = scores_of(*ppo.make(), 12, seed=1)
    # Of the seeds 0 to 9 the least gain is fivefold.
    assert sum(scores[-3:]) / 3 > 3 * scores[0]


def test_cut_within_a_rollout_it_goes_on_from_the_last_one_to_the_same_weights(
    tmp_path: Path,
) -> None:
    whole, learn = ppo.make()
    scores = scores_of(whole, learn, 4, seed=3)
    with pytest.raises(ZeroDivisionError):
        scores_of(*ppo.make(Checkpoint(tmp_path), Fails()), 4, seed=3)
    again, other = ppo.make(Checkpoint(tmp_path))
    batches: list[int] = []
    again.on("begin_batch", lambda run: batches.append(run.n_iter))
    history = again.fit(4, other, resume="auto").history
    assert batches[0] == 2 * 4 * 8  # of the third rollout
    assert [row["train_score"] for row in history] == scores
    for p, q in zip(learn.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_cancelled_within_a_rollout_it_goes_on_from_the_checkpoint_before(tmp_path: Path) -> None:
    whole, learn = ppo.make()
    scores = scores_of(whole, learn, 4, seed=3)
    first, other = ppo.make(Checkpoint(tmp_path))
    first.on("after_batch", lambda run: run.token.cancel("fit"), when=lambda run: run.n_iter == 80)
    assert len(scores_of(first, other, 4, seed=3)) == 3
    again, other = ppo.make(Checkpoint(tmp_path))
    with pytest.raises(CheckpointError, match="is now another batch"):
        again.fit(4, other, resume="auto")
    before = sorted(tmp_path.glob("*.pt"))[0]
    history = again.fit(4, other, resume=before).history
    assert [row["train_score"] for row in history] == scores
    for p, q in zip(learn.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)


class Fails(Callback):
    """In the third rollout."""

    @handler(when=lambda run: run.n_iter == 80)
    def after_batch(self) -> None:
        raise ZeroDivisionError
