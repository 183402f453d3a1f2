"""PPO on CartPole: an epoch is a rollout, which the loader plays with the policy as it is by then."""

import gymnasium
import torch
from cart_pole import rollout
from torch import nn
from torch.distributions import Categorical
from torch.nn.functional import mse_loss

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner
from eventtrain.callbacks import GradientClip


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
        self.critic = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, seen):
        return Categorical(logits=self.actor(seen)), self.critic(seen)[:, 0]


@torch.no_grad()
def judged(model, moves, discount=0.99, trust=0.95):
    (policy, value), (_, then) = model(moves.seen), model(moves.after)
    surprise = moves.reward + discount * then * ~moves.fell - value
    advantage, gain = torch.zeros_like(surprise), 0.0
    for move in reversed(range(len(surprise))):
        gain = surprise[move] + discount * trust * gain * ~moves.over[move]
        advantage[move] = gain
    chance = policy.log_prob(moves.done)
    return {
        "done": moves.done, "chance": chance, "advantage": advantage, "worth": advantage + value
    }  # fmt: skip


class Rollouts:
    def __init__(self, model, moves=512, passes=4, bs=64):
        self.env, self.model = gymnasium.make("CartPole-v1"), model
        self.moves, self.passes, self.bs = moves, passes, bs

    def __iter__(self):
        moves = rollout(self.env, self.model.actor, self.moves, int(torch.randint(2**31, ())))
        self.score = float(moves.reward.sum() / moves.over.sum().clamp(min=1))
        rows = judged(self.model, moves)
        for _ in range(self.passes):
            for some in torch.randperm(self.moves).split(self.bs):
                yield moves.seen[some], {name: each[some] for name, each in rows.items()}


def objective(pred, y):
    policy, value = pred
    ratio = (policy.log_prob(y["done"]) - y["chance"]).exp()
    advantage = (y["advantage"] - y["advantage"].mean()) / (y["advantage"].std() + 1e-8)
    gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    off, entropy = mse_loss(value, y["worth"]), policy.entropy().mean()
    return {"loss": 0.5 * off - gain - 0.01 * entropy, "value_loss": off, "entropy": entropy}


def make(*cbs):
    torch.manual_seed(0)
    model = ActorCritic()
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    rollouts = Rollouts(model)
    run = Runner([AvgStatsCallback(report=None), GradientClip(0.5), *cbs])
    run.on("after_loss", lambda run: run.log("score", rollouts.score))
    return run, Learner(model, opt, objective, DataBunch(rollouts))


if __name__ == "__main__":
    run, learn = make()
    for row in run.fit(20, learn).history:
        print(row["epoch"], row["train_score"], row["train_value_loss"], row["train_entropy"])
