"""REINFORCE on CartPole, beside a loop written by hand."""

from __future__ import annotations

from typing import Any

import torch
from tests_of_jobs import needs

needs("gymnasium", "ignite")

import gymnasium
import reinforce
import reinforce_ignite
from cart_pole import episode
from ignite.engine import Events


def lengths_of(run: Any, learn: Any, seed: int) -> list[int]:
    lengths: list[int] = []
    torch.manual_seed(seed)
    run.on("after_batch", lambda run: lengths.append(len(run.xb)))
    run.fit(1, learn)
    return lengths


def by_hand(policy: Any, opt: Any, count: int) -> list[int]:
    env, lengths = gymnasium.make("CartPole-v1"), []
    torch.manual_seed(7)
    for seed in range(count):
        seen, done, worth = episode(env, policy, seed)
        chosen = policy(seen).log_softmax(1).gather(1, done[:, None])[:, 0]
        opt.zero_grad()
        (-(chosen * worth).mean()).backward()
        opt.step()
        lengths.append(len(seen))
    return lengths


def test_the_policy_is_that_of_a_loop_by_hand() -> None:
    (run, ours), (_, theirs) = reinforce.make(20), reinforce.make(20)
    assert lengths_of(run, ours, 7) == by_hand(theirs.model, theirs.opt, 20)
    for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_it_learns_to_balance() -> None:
    lengths = lengths_of(*reinforce.make(100), 1)
    # Of the seeds 0 to 9 the least gain is twofold.
    assert sum(lengths[-20:]) > 1.5 * sum(lengths[:20])


def test_the_policy_is_that_of_ignite() -> None:
    run, learn = reinforce.make(20)
    trainer, policy = reinforce_ignite.make()
    lengths: list[int] = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def note(engine: Any) -> None:
        lengths.append(engine.state.output)

    torch.manual_seed(7)
    trainer.run(range(20))
    assert lengths_of(run, learn, 7) == lengths
    for p, q in zip(learn.model.parameters(), policy.parameters(), strict=True):
        assert torch.equal(p, q)
