"""What eventtrain costs, each question beside its hand-written answer in the same run.

``python -m benchmarks`` runs every suite; see README.md in this folder. A suite
is a module with ``run(options) -> Suite``, named in ``SUITES``.
"""

from __future__ import annotations

SUITES: dict[str, str] = {
    "emit": "one emission against a bare for over the same functions",
    "loop": "a batch with nothing to compute, and a tiny real one, against a hand-written loop",
    "data": "an epoch of real training against slicing the tensors by hand",
    "imports": "import eventtrain on top of import torch",
}
"""Module of each suite in this package, in the order in which they run: its question."""
