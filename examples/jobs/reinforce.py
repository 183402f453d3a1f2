"""REINFORCE on CartPole: the loader plays, with the policy as it is by then."""

import gymnasium
import torch
from cart_pole import episode
from torch import nn
from torch.distributions import Categorical

from eventtrain import DataBunch, Learner, Runner


class Episodes:
    def __init__(self, policy, count):
        self.env, self.policy, self.count = gymnasium.make("CartPole-v1"), policy, count

    def __iter__(self):
        for seed in range(self.count):
            seen, done, worth = episode(self.env, self.policy, seed)
            yield seen, {"action": done, "worth": worth}


def surprise(logits, y):
    return -(Categorical(logits=logits).log_prob(y["action"]) * y["worth"]).mean()


def make(count):
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
    opt = torch.optim.Adam(policy.parameters(), lr=0.005)
    return Runner(), Learner(policy, opt, surprise, DataBunch(Episodes(policy, count)))


if __name__ == "__main__":
    run, learn = make(120)
    run.on("after_batch", lambda run: print(run.batch_index, len(run.xb)), every=10)
    run.fit(1, learn)
