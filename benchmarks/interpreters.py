"""How other interpreters find what is here, and what their environment is."""

from __future__ import annotations

import os
from pathlib import Path


def module_beside(file: str, name: str) -> tuple[Path, str]:
    """Return the folder from which a module beside ``file`` can be imported, and its name there.

    Both from where the files are: a checkout may load this package under the name
    that it has when it is installed.
    """
    folder, names = Path(file).resolve().parent, [name]
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(names)


def environment_of(folder: Path) -> dict[str, str]:
    """Return an environment in which what is in ``folder`` is imported, without a GPU."""
    own = dict(os.environ)
    # What is installed is found anyway, and to put one environment's packages before
    # another's would mix them.
    if folder.name not in ("site-packages", "dist-packages"):
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), own.get("PYTHONPATH", "")]))
    return {**own, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
