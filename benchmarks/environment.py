"""What the figures depend on: versions, machine, settings."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import eventtrain

from .measure import Options


def environment(options: Options) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "eventtrain": eventtrain.__version__,
        "commit": _commit(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "torch": torch.__version__,
        "libraries": {name: _version(name) for name in ("blinker", "pluggy", "psygnal", "numpy")},
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "device": _device(options.device),
        "torch_threads": torch.get_num_threads(),
        "gc": "off while timing",
        "seed": options.seed,
        "quick": options.quick,
    }


def _commit() -> str | None:
    """Return the commit of the code that is measured; ``None`` where it is not from a checkout."""
    file = Path(eventtrain.__file__).resolve()
    here = ["git", "-C", str(file.parents[1])]
    try:
        # An environment may lie inside of a repository that has nothing to do with it.
        _output(*here, "ls-files", "--error-unmatch", str(file))
        return _output(*here, "describe", "--always", "--exclude=*", "--dirty", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return None


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device(asked: str | None) -> str | None:
    """Name the CUDA device, the current one or the one asked for; ``None`` where there is none."""
    if not torch.cuda.is_available():
        return None
    device = asked if asked is not None and torch.device(asked).type == "cuda" else None
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    return f"{name}, sm_{major}{minor}, CUDA {torch.version.cuda}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
