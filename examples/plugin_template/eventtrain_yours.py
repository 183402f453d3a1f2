"""What your plugin does, in a line."""

from eventtrain import Callback, Runner

eventtrain_plugin_api = 1


class Yours(Callback):
    """What it does, and what its options mean.

    Args:
        every: Training batches between two reports.
    """

    priority = -80  # reports: after those who measure

    def __init__(self, every: int = 100) -> None:
        self.every = every

    def after_batch(self, run: Runner) -> None:
        """Report now and then."""
        if run.in_train and run.n_iter % self.every == 0:
            print(f"{run.n_iter} batches, {run.steps} steps")
