"""What the command line takes, and what it refuses before anything is measured."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from . import SUITES
from .records import Misuse
from .tables import around_tables

_EPILOG = """exit codes: 0; 1 with --check, when a target is missed; 2 for misuse; 3 when a suite
has failed; 130 after Ctrl-C; the file of --json has the suites that were finished"""


def parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of a command that is called ``program``."""
    listing = "\n".join(f"  {name:<9} {question}" for name, question in SUITES.items())
    made = argparse.ArgumentParser(
        prog=program,
        description=f"Measure what dispatch costs, beside loops written by hand.\n\n{listing}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("suites", nargs="*", metavar="SUITE", help="what to measure; everything by default")
    add("--json", type=Path, metavar="FILE", help="write everything there, every round included")
    add("--markdown", type=Path, metavar="FILE", help="write the tables there; where FILE has "
        "the lines <!-- results --> and <!-- /results -->, between them")  # fmt: skip
    add("--plot", type=Path, metavar="DIR", help="draw the figures there, as PNG")
    add("--compare", type=Path, metavar="OLD.json", help="print what has moved by more than its "
        "spread since that file was written")  # fmt: skip
    add("--from", dest="read", type=Path, metavar="FILE", help="measure nothing: take the figures "
        "from a file that --json wrote")  # fmt: skip
    add("--quick", action="store_true", help="try it out; the figures mean nothing")
    add("--check", action="store_true", help="exit with 1 when a target is missed")
    add("--device", metavar="NAME", help="where the gpu suite runs: cuda, cpu or meta; by default "
        "CUDA where there is any, else the CPU and meta")  # fmt: skip
    add("--seed", type=int, default=0, help="of all random numbers, default 0")
    add("--threads", type=int, default=1, help="of torch, default 1")
    return made


def check(given: argparse.Namespace) -> None:
    """Refuse what cannot be done, before anything is measured."""
    unknown = [name for name in given.suites if name not in SUITES]
    if unknown:
        raise Misuse(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    absent = [name for name in given.suites if not is_there(name)]
    if absent:
        raise Misuse(f"suite {', '.join(absent)} is not part of this installation")
    if given.read is not None:
        _check_reading(given)
    most = os.cpu_count() or 1
    if not 1 <= given.threads <= most:
        raise Misuse(f"--threads must be 1 to {most}, as many as CPUs, got {given.threads}")
    if not 0 <= given.seed < 2**64:
        raise Misuse(f"--seed must be 0 to 2**64 - 1, got {given.seed}")
    files = {"--json": given.json, "--markdown": given.markdown}
    named = {option: path for option, path in files.items() if path is not None}
    for option, path in named.items():
        _check_writable(option, path)
    if len(named) > len({os.path.realpath(path) for path in named.values()}):
        raise Misuse(f"--json and --markdown name one file, {given.json}: name two")
    if given.markdown is not None:
        around_tables(given.markdown)
    if given.plot is not None:
        _check_plot(given.plot)
    if given.device is not None:
        _check_device(given.device)


def _check_reading(given: argparse.Namespace) -> None:
    """Refuse what would be without effect where nothing is measured."""
    settings = {"--json": None, "--quick": False, "--device": None, "--seed": 0, "--threads": 1}
    idle = ["suites"] if given.suites else []
    idle += [name for name, value in settings.items() if getattr(given, name[2:]) != value]
    if idle:
        raise Misuse(f"--from measures nothing: leave out {', '.join(idle)}")


def _check_writable(option: str, path: Path) -> None:
    """Open the file as if to write to it, and leave everything as it was."""
    try:
        target = Path(os.path.realpath(path))  # to remove a file, and not the link to it
        existed = target.exists()
        target.open("a").close()
        if not existed:
            target.unlink()
    except OSError as error:
        raise Misuse(
            f"{option} {path} cannot be written ({error.strerror}): name a file in a folder that "
            "exists"
        ) from None


def _check_plot(folder: Path) -> None:
    if find_spec("matplotlib") is None:
        raise Misuse('--plot needs matplotlib: pip install "eventtrain[bench]"')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise Misuse(
            f"--plot {folder} is no folder: name a folder, which is made if need be"
        ) from None
    except OSError as error:
        raise Misuse(
            f"--plot {folder} cannot be written to ({error.strerror}): name another folder"
        ) from None


def _check_device(name: str) -> None:
    import torch

    from .steps import CASES

    try:
        device = torch.device(name)
        if device.type not in CASES:
            raise RuntimeError
        torch.empty(1, device=device).zero_()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise Misuse(
            f"--device {name} cannot be used here; cpu and meta can always, cuda where torch "
            "finds a GPU"
        ) from None


def is_there(name: str) -> bool:
    """Whether a suite is part of this installation."""
    return find_spec(f".{name}", __package__) is not None
