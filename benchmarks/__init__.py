"""What eventtrain costs, each question beside its hand-written answer in the same run.

``eventtrain bench`` and ``python -m benchmarks`` run every suite; see README.md
in this folder. A suite is a module with ``run(options) -> Suite``, named in ``SUITES``.
Installed, this package is ``eventtrain.benchmarks``.
"""

from __future__ import annotations

SUITES: dict[str, str] = {
    "emit": "one emission against a bare for over the same functions, and other libraries",
    "loop": "a batch with nothing to compute, and a tiny real one, against a hand-written loop",
    "gpu": "real batches on the device, from launch-bound to compute-bound",
    "data": "an epoch of real training against slicing the tensors by hand",
    "kit": "an epoch with the callbacks that ship, each alone and all together",
    "scale": "the cost against the number of handlers, events, plugins and batches",
    "agreement": "a request from one of 2 to 256 ranks to when all have left, and a boundary",
    "distributed": "training on two processes, against DDP by hand and other frameworks",
    "imports": "everything that eventtrain exports on top of import torch",
    "peers": "the same training by other frameworks",
}
"""Module of each suite in this package, in the order in which they run: its question."""
