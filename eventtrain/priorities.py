"""Bands of priority, so that handlers from everywhere find their place among each other.

Code of the user's own stands at 0, between those who measure and those who decide.
"""

BEFORE_EVERYONE = 1000
"""Puts back what was changed for the loop's own lines: enters nothing, ends something."""

MOVE_DATA = 100
"""Moves a batch to its device; decides whether a step is taken at all."""

TRANSFORM = 90
"""Changes a batch; unscales gradients."""

METRICS = 50
"""Measures."""

POLICY = -50
"""Decides: schedules, clipping, early stopping."""

REPORTS = -80
"""Tells people and files."""

CHECKPOINTS = -100
"""Saves what all others have left."""

AFTER_EVERYONE = -1000
"""Changes something for the loop's next line alone, after everybody has seen it as it was."""
