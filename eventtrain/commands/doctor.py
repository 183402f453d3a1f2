"""``eventtrain doctor``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..text_table import text_table
from .processes import examine_processes, process_rows

if TYPE_CHECKING:
    import click

_CORE = {"torch": (2, 6), "blinker": (1, 9)}
_EXTRAS = {
    "click": "cli",
    "scikit-learn": "demo",
    "matplotlib": "demo",
    "tqdm": "demo",
    "tensorboard": "watch",
    "pandas": "watch",
    "plotly": "report",
    "pluggy": "bench",
    "psygnal": "bench",
    "torchmetrics": "test",
}
"""Optional packages, and the extra that brings each."""


def make() -> click.Command:
    """Make the command."""
    import click

    @click.command()
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
    def doctor(as_json: bool) -> int:
        """Show versions, devices and data folders, and say what is missing.

        Exit code 1 when a package that eventtrain cannot do without is missing
        or too old. What an extra brings may be missing.

        Started by torchrun or srun, the processes meet, and rank 0 prints one
        report with the devices of each; exit code 1 if they do not meet.
        """
        return print_report(as_json=as_json)

    return doctor


def main(arguments: Sequence[str]) -> int:
    """Be the command where click is missing: the one tool that must run then."""
    parser = argparse.ArgumentParser(
        "eventtrain doctor",
        description="Show versions, devices and data folders, and say what is missing.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead.")
    try:
        return print_report(as_json=parser.parse_args(arguments).json)
    except SystemExit as end:  # after the help, or a line about wrong arguments
        return int(end.code or 0)


def print_report(*, as_json: bool) -> int:
    """Print what ``examine`` finds, and return the exit code."""
    report = examine()
    rank = report["processes"]["rank"]
    if rank == 0:
        print(json.dumps(report, indent=2) if as_json else "\n".join(_lines(report)))
    for problem in report["problems"] if rank else ():
        print(f"rank {rank}: problem: {problem}", file=sys.stderr)
    return 0 if report["ok"] else 1


def examine() -> dict[str, Any]:
    """Return what there is and what is missing, as plain data."""
    from .. import __version__

    packages = {name: _version(name) for name in (*_CORE, *_EXTRAS)}
    problems = []
    for name, least in _CORE.items():
        wanted = ".".join(map(str, least))
        found = packages[name]
        if found is None or _numbers(found) < least:
            what = "is missing" if found is None else f"{found} is too old"
            problems.append(f'{name} {what}: pip install "{name}>={wanted}"')
    devices = _devices()
    if "error" in devices and packages["torch"] is not None:
        problems.append(f"{devices['error']}; install it anew: pip install --force-reinstall torch")
    processes = examine_processes(devices)
    problems += processes.pop("problems")
    advice = [
        f'{name} is missing: pip install "eventtrain[{extra}]"'
        for name, extra in _EXTRAS.items()
        if packages[name] is None
    ]
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "eventtrain": __version__,
        "packages": packages,
        "devices": devices,
        "processes": processes,
        "mnist": _mnist(),
        "problems": problems,
        "advice": advice,
        "ok": not problems,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``(2, 13)`` for ``"2.13.0+cpu"``."""
    numbers: list[int] = []
    for part in version.split(".")[:2]:
        digits = "".join(c for c in part if c.isdigit())
        numbers.append(int(digits or 0))
    return tuple(numbers)


def _devices() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything
        return {"error": f"torch cannot be imported: {type(error).__name__}: {error}"}
    cuda = torch.cuda.is_available()
    return {
        "cpu_threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if cuda
        else [],
        "cuda_of_torch": torch.version.cuda,
        "mps": torch.backends.mps.is_available(),
    }


def _mnist() -> list[dict[str, Any]]:
    """Say of each folder in which MNIST is looked for whether its files are there."""
    given = os.environ.get("EVENTTRAIN_DATA")
    if given:
        folder = Path(given).expanduser()
        # As get_data looks: the folder, or mnist in it.
        found = next((f for f in (folder, folder / "mnist") if _holds_mnist(f)), None)
        return [_folder("EVENTTRAIN_DATA", found or folder, found is not None)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "eventtrain" / "mnist"
    return [_folder("cache folder", folder, _holds_mnist(folder))]


def _folder(source: str, folder: Path, present: bool) -> dict[str, Any]:
    return {"source": source, "folder": str(folder), "present": present}


def _holds_mnist(folder: Path) -> bool:
    from ..data.mnist import IMAGES, LABELS

    return all(
        (folder / name).is_file() or (folder / f"{name}.gz").is_file()
        for name, _ in (IMAGES, LABELS)
    )


def _lines(report: dict[str, Any]) -> Iterator[str]:
    rows = [
        ("python", f"{report['python']} ({report['executable']})"),
        ("platform", report["platform"]),
        ("eventtrain", report["eventtrain"]),
    ]
    rows += [(name, version or "missing") for name, version in report["packages"].items()]
    rows += list(_device_rows(report["devices"]))
    rows += list(process_rows(report["processes"]))
    for place in report["mnist"]:
        state = "present" if place["present"] else "not there"
        rows.append(("MNIST", f"{state}: {place['folder']} ({place['source']})"))
    yield text_table(rows)
    notes = [f"problem: {text}" for text in report["problems"]]
    notes += [f"optional: {text}" for text in report["advice"]]
    if not all(place["present"] for place in report["mnist"]):
        notes.append(_how_to_get_mnist(report["mnist"][0]))
    yield ""
    yield from notes or ["nothing is missing"]


def _how_to_get_mnist(place: dict[str, Any]) -> str:
    if place["source"] == "EVENTTRAIN_DATA":
        return "optional: MNIST is missing: put its files there, or unset EVENTTRAIN_DATA"
    return 'optional: MNIST is missing: get_data("mnist") downloads it, "digits" needs no download'


def _device_rows(devices: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "error" in devices:
        yield "devices", devices["error"]
        return
    yield "cpu", f"{devices['cpu_threads']} threads"
    built = devices["cuda_of_torch"]
    none = "no device" if built else "this torch is built without CUDA"
    yield "cuda", ", ".join(devices["cuda"]) or none
    yield "mps", "available" if devices["mps"] else "not available"
