"""What your plugin does, in a line."""

from eventtrain import Callback

eventtrain_plugin_api = 1


class Yours(Callback):
    """What it does, and what its options mean.

    Args:
        every: Training batches between two reports.
    """

    priority = -80  # reports: after those who measure

    def __init__(self, every: int = 100) -> None:
        self.every = every

    def after_batch(self) -> None:
        """Report now and then."""
        if self.in_train and self.n_iter % self.every == 0:  # read from the run
            print(f"{self.n_iter} batches, {self.steps} steps")
