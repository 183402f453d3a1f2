"""A report of runs as one file: a page that opens without a network."""

from __future__ import annotations

import base64
import gzip
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..arguments import absolute_path
from ..atomic_file import replace_file
from ..bus.profiling import Profile
from .charts import charts_of
from .page import page_of
from .run_facts import RunFacts, facts_of_run

_ENDINGS = (".html", ".htm")


def write_report(runs: Sequence[RunFacts], path: str | os.PathLike[str]) -> Path:
    """Write the page of one run, or of several side by side.

    Args:
        runs: What is known of them.
        path: The file, ``.html``; one that is there is replaced, whole or not at all.

    Returns:
        The absolute path of the file.

    Raises:
        TypeError: ``path`` is no path.
        ValueError: It does not end in ``.html``.
        ModuleNotFoundError: plotly is missing.
        OSError: The file cannot be written.
    """
    target = checked_target(path)
    page = page_of(runs, charts_of(runs), _library())
    replace_file(target, lambda file: file.write(page.encode("utf-8", "replace")))
    return target


def report_of_run(run: Any, path: str | os.PathLike[str], profile: Profile | None) -> Path:
    """Write the page of a runner, in a run or after one; see ``Runner.report``."""
    target = checked_target(path)
    facts = facts_of_run(run, target.stem)
    if profile is not None:
        facts.take_profile(profile.to_dicts())
    return write_report([facts], target)


def checked_target(path: str | os.PathLike[str]) -> Path:
    """Return where a report goes, before any work is done.

    Raises:
        TypeError: It is no path.
        ValueError: It does not end in ``.html``, and so may be a file of another kind.
    """
    target = Path(absolute_path("path", path))
    if target.suffix.lower() not in _ENDINGS:
        raise ValueError(f"a report is a page: name it .html, as in 'report.html', not {target}")
    return target


def _library() -> str:
    """Return plotly's script, made small: it is two megabytes of a page, and five by itself."""
    try:
        script: str = import_module("plotly.offline").get_plotlyjs()
    except ModuleNotFoundError as error:
        package = str(error.name or "plotly").partition(".")[0]
        message = f'a run report needs {package}: pip install "eventtrain[report]"'
        raise ModuleNotFoundError(message, name=package) from error
    packed = gzip.compress(script.encode(), mtime=0)
    return base64.b64encode(packed).decode()
