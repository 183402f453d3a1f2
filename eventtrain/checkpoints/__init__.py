"""Checkpoints: what they hold, whether they fit a run, and the files they are in."""
