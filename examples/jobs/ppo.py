"""PPO on CartPole: an epoch is a rollout, played by the loader with the policy as it is by then."""

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
    return policy.log_prob(moves.done), advantage, advantage + value


class Rollouts:
    def __init__(self, model):
        self.env, self.model = gymnasium.make("CartPole-v1"), model

    def __iter__(self):
        moves = rollout(self.env, self.model.actor, 512, int(torch.randint(2**31, ())))
        self.score = float(moves.reward.sum() / moves.over.sum().clamp(min=1))
        rows = (moves.done, *judged(self.model, moves))
        for _ in range(4):
            for some in torch.randperm(512).split(64):
                yield moves.seen[some], [each[some] for each in rows]


def objective(pred, y):
    (policy, value), (done, chance, advantage, worth) = pred, y
    ratio = (policy.log_prob(done) - chance).exp()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    off, entropy = mse_loss(value, worth), policy.entropy().mean()
    return {"loss": 0.5 * off - gain - 0.01 * entropy, "value_loss": off, "entropy": entropy}


def make(*cbs):
    torch.manual_seed(0)
    model = ActorCritic()
    rollouts, opt = Rollouts(model), torch.optim.Adam(model.parameters(), lr=3e-3)
    run = Runner([AvgStatsCallback(report=None), GradientClip(0.5), *cbs])
    run.on("after_loss", lambda run: run.log("score", rollouts.score))
    return run, Learner(model, opt, objective, DataBunch(rollouts))


if __name__ == "__main__":
    run, learn = make()
    for row in run.fit(20, learn).history:
        print(row["epoch"], row["train_score"], row["train_value_loss"], row["train_entropy"])
