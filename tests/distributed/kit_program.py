"""What ranks do with every callback of the kit: ``kit_program.py FOLDER``, under torchrun.

All fits of both strategies run one after the other in one process group. Each rank writes what it
was told of them into FOLDER as JSON.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from kit_cases import CASES, RANK
from torch import distributed as dist

from eventtrain.distributed.groups import joined_group

STRATEGIES = ("ddp", "fsdp2")


def told_by(strategy: str | None, folder: Path, names: list[str]) -> dict[str, Any]:
    """What has come of the fits with each callback."""
    found: dict[str, Any] = {}
    for name in names:
        own = folder / f"{name}-{strategy}"
        own.mkdir(parents=True, exist_ok=True)
        try:
            found[name] = CASES[name](strategy, own)
        except Exception as error:
            text = traceback.format_exc()
            found[name] = {"error": f"{type(error).__name__}: {error}", "trace": text}
        if dist.is_initialized():
            dist.barrier()
    return found


def main(folder: Path, names: list[str]) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    joined_group()
    told = {each: told_by(each, folder, names or list(CASES)) for each in STRATEGIES}
    (folder / f"{RANK}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
