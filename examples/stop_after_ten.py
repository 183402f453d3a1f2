"""Stop a fit after ten steps, from a callback, and read in the result who did it and why.

Run it with::

    python examples/stop_after_ten.py
"""

import torch
from torch.nn import functional

from eventtrain import (
    Callback,
    DataBunch,
    Dataset,
    Learner,
    Runner,
    get_data,
    get_dls,
    get_model,
)


class TestCallback(Callback):
    """Counts optimizer steps and cancels the fit after the tenth."""

    def begin_fit(self, run: Runner) -> None:
        """Start counting."""
        self.n_iters = 0

    def after_step(self, run: Runner) -> None:
        """Count; nothing needs to be returned, the token carries the wish to stop."""
        self.n_iters += 1
        print(self.n_iters)
        if self.n_iters >= 10:
            run.token.cancel("fit", "ten steps are enough")


def main() -> None:
    """Train for one epoch that ends early."""
    torch.manual_seed(0)
    x_train, y_train, x_valid, y_valid = get_data("digits")
    data = DataBunch(*get_dls(Dataset(x_train, y_train), Dataset(x_valid, y_valid), bs=64), c=10)
    learn = Learner(*get_model(data), functional.cross_entropy, data)

    result = Runner(TestCallback()).fit(1, learn)
    print(f"{result.outcome} after {result.steps} steps: {result.reason}")
    print(result.cancellations[0])


if __name__ == "__main__":
    main()
