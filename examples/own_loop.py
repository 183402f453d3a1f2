"""A loop of your own: two networks, two optimizers, on the bus, the token and the scopes.

A generator learns to turn uniform noise into draws from a normal distribution,
by fooling a discriminator that learns to tell the two apart. ``Runner`` knows
nothing of such a loop; the events, the order of handlers, the closing events
and the cancellation are the same all the same.

Run it with::

    python examples/own_loop.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from eventtrain import CancellationToken, EventBus

MEAN, STD = 4.0, 1.25
EPOCHS, BATCHES, ROWS = 20, 200, 256


class Gan:
    """What handlers are given: the two players, and where the loop stands."""

    def __init__(self) -> None:
        self.bus = EventBus()
        self.bus.declare("after_discriminator", "the discriminator has stepped")
        self.token = CancellationToken()
        # Messages and cancellations name these two, wherever a sender has them.
        self.epoch: int | None = None
        self.batch_index: int | None = None
        self.generator = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 1))
        self.discriminator = nn.Sequential(nn.Linear(1, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        self.g_opt = torch.optim.Adam(self.generator.parameters(), lr=2e-3, betas=(0.5, 0.9))
        self.d_opt = torch.optim.Adam(self.discriminator.parameters(), lr=4e-3, betas=(0.5, 0.9))
        self.d_loss = self.g_loss = torch.zeros(())

    def sample(self, rows: int) -> Tensor:
        """Return numbers that the generator makes up, ``[rows, 1]``."""
        return self.generator(torch.rand(rows, 1) * 2 - 1)

    def fit(self, epochs: int) -> None:
        """Train both, epoch by epoch, until all are done or the token says otherwise."""
        emit, scope = self.bus.bind(self, self.token)
        with scope.fit:
            emit.begin_fit()
            for self.epoch in range(epochs):
                with scope.epoch:
                    emit.begin_epoch()
                    with scope.train:
                        emit.begin_train()
                        for self.batch_index in range(BATCHES):
                            with scope.batch:
                                emit.begin_batch()
                                self.one_batch(emit, scope)

    def one_batch(self, emit, scope) -> None:
        """Let the discriminator take a step, then the generator."""
        real = MEAN + STD * torch.randn(ROWS, 1)
        fake = self.sample(ROWS)

        self.d_loss = self.judge(real, 1.0) + self.judge(fake.detach(), 0.0)
        self.d_opt.zero_grad()
        self.d_loss.backward()
        self.d_opt.step()
        emit.after_discriminator()

        self.g_loss = self.judge(fake, 1.0)
        self.g_opt.zero_grad()
        self.g_loss.backward()
        with scope.step as step:
            emit.begin_step()
            self.g_opt.step()
        if step.outcome == "completed":
            emit.after_step()

    def judge(self, values: Tensor, target: float) -> Tensor:
        """Return the loss of calling ``values`` real (1.0) or made up (0.0)."""
        logits = self.discriminator(values)
        return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def measure(gan: Gan) -> tuple[float, float]:
    """Return mean and standard deviation of what the generator makes up."""
    with torch.no_grad():
        std, mean = torch.std_mean(gan.sample(4096))
    return mean.item(), std.item()


def report(gan: Gan) -> None:
    """Print a line an epoch."""
    mean, std = measure(gan)
    print(f"epoch {gan.epoch:2}  discriminator {gan.d_loss:.3f}  generator {gan.g_loss:.3f}"
          f"  mean {mean:.2f}  std {std:.2f}")  # fmt: skip


def stop_when_close(gan: Gan) -> None:
    """End the fit once the made-up numbers are distributed nearly as the real ones."""
    mean, std = measure(gan)  # reads from the device: not to be done every batch
    if abs(mean - MEAN) < 0.1 and abs(std - STD) < 0.1:
        gan.token.cancel("fit", f"mean {mean:.2f} and deviation {std:.2f} are close enough")


def main() -> None:
    """Train until it is good enough, and say how it ended."""
    torch.manual_seed(0)
    gan = Gan()
    gan.bus.on("after_epoch", report)
    gan.bus.on("after_step", stop_when_close, every=50)
    losses: list[Tensor] = []
    gan.bus.on("after_discriminator", lambda gan: losses.append(gan.d_loss.detach()))

    print(f"real numbers: mean {MEAN}, std {STD}")
    print("before: mean {:.2f}, std {:.2f}".format(*measure(gan)))
    gan.fit(EPOCHS)
    print("after: mean {:.2f}, std {:.2f}".format(*measure(gan)))
    loss = torch.stack(losses).mean()
    print(f"{len(losses)} batches, discriminator {loss:.3f} on average (1.386 is a coin toss)")
    for cancellation in gan.token.history:
        print(cancellation)


if __name__ == "__main__":
    main()
