"""Two workers of Ray Train on a cluster of this machine: ``ray_program.py FOLDER DEED``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

FOLDER, HERE = sys.argv[1], str(Path(__file__).parent)


def work(options: dict[str, list[str]]) -> None:
    """Be one of the workers, which has no command line of its own."""
    sys.argv = options["argv"]
    sys.path.insert(0, options["path"][0])
    from starting_program import DEEDS
    from torch import distributed as dist

    told = DEEDS[sys.argv[2]]()
    (Path(sys.argv[1]) / f"{dist.get_rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        TorchTrainer(
            work,
            train_loop_config={"argv": sys.argv, "path": [HERE]},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(storage_path=FOLDER),
        ).fit()
    finally:
        ray.shutdown()
