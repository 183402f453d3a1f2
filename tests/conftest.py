"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import invalidate_caches
from pathlib import Path
from typing import Any
from uuid import uuid4

# Tensors are small here: threads would wait for each other. Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# torch asks the name server for names of the loopback's addresses, and it may be deaf.
os.environ.setdefault("RES_OPTIONS", "timeout:1")

import pytest
import torch
from host_sync import NoSync
from hypothesis import HealthCheck, settings
from torch import nn

from eventtrain import DataBunch, Learner, Runner, TensorLoader
from eventtrain.cli import main

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of the machine than of the code.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("untimed")
ROOT = Path(__file__).resolve().parents[1]
Install = Callable[..., str]
Result = tuple[int, str, str]
Process = subprocess.Popen[str]
Torchrun = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have one worker run all tests of a file: many share what takes long to make."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # long files have few tests, and would come last
    return LoadFileScheduling(config, log)


def children_of(parent: int) -> list[int]:
    """The processes that one has started, and those that these have, where Linux lists them."""
    listed = Path(f"/proc/{parent}/task/{parent}/children")
    children = [int(pid) for pid in listed.read_text().split()] if listed.exists() else []
    return [*children, *(each for child in children for each in children_of(child))]


@pytest.fixture(scope="session")
def torchrun() -> Torchrun:
    """Have torchrun start two processes, with a session of their own and a hard limit."""

    def run(
        *command: str,
        options: Sequence[str] = (),
        limit: float = 60.0,
        meanwhile: Callable[[Process], object] = lambda process: None,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """``meanwhile`` is called while they run."""
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", *options]
        paths = [str(ROOT), environment.pop("PYTHONPATH", os.environ.get("PYTHONPATH", ""))]
        environment = {"PYTHONWARNINGS": "", "PYTHONPATH": os.pathsep.join(paths), **environment}
        process = subprocess.Popen(
            [*start, *command],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            meanwhile(process)
            said = process.communicate(timeout=limit)
        except BaseException as error:
            for pid in (process.pid, *children_of(process.pid)):  # ranks have sessions of their own
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"they have not ended: {process.communicate()}") from error
        return subprocess.CompletedProcess(command, process.returncode, *said)

    return run


@pytest.fixture
def sync_debug_mode() -> Iterator[Callable[[str], None]]:
    """Set CUDA's debug mode of waiting, less the notice that it is a prototype; off in the end."""

    def set_mode(mode: str) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode(mode)

    yield set_mode
    set_mode("default")


@pytest.fixture
def no_sync() -> NoSync:
    """``with no_sync:`` fails on everything that would make the host wait for a device."""
    return NoSync()


@pytest.fixture
def make_learner() -> Callable[..., Learner]:
    """Make a learner on random data: ``train`` and ``valid`` batches of four rows each."""

    def make(train: int = 3, valid: int = 2) -> Learner:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4 * (train + valid), 5, generator=generator)
        y = torch.randint(0, 3, (len(x),), generator=generator)
        rows = 4 * train
        valid_dl = TensorLoader(x[rows:], y[rows:], bs=4) if valid else None
        data = DataBunch(TensorLoader(x[:rows], y[:rows], bs=4), valid_dl, c=3)
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        return Learner(model, opt, nn.functional.cross_entropy, data)

    return make


@pytest.fixture
def learner(make_learner: Callable[..., Learner]) -> Learner:
    """A learner with three training and two validation batches."""
    return make_learner()


@pytest.fixture(params=["complete", "cancel", "fail"])
def fit_however_it_ends(request: pytest.FixtureRequest) -> Callable[[Runner, Learner], None]:
    """Fit for an epoch that is completed, or cancelled or failed after the first loss."""

    def fit(run: Runner, learner: Learner) -> None:
        if request.param == "cancel":
            run.on("after_loss", lambda run: run.token.cancel("fit"))
        if request.param == "fail":
            run.on("after_loss", lambda run: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run.fit(1, learner)
        else:
            run.fit(1, learner)

    return fit


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package that offers one plugin, as pip would leave it; return its module."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(code: str, name: str = "demo", target: str = "Demo", dist: str = "demo-package") -> str:
        module = f"plugin_{uuid4().hex}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{dist.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n")
        entry = f"{name} = {module}" + (f":{target}" if target else "")
        (info / "entry_points.txt").write_text(f"[eventtrain.plugins]\n{entry}\n")
        invalidate_caches()
        return module

    return put


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Call ``main`` in this process: exit code, stdout and stderr."""

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["eventtrain", *arguments])
        return main(), *capsys.readouterr()

    return call


@pytest.fixture
def call_and_signal() -> Iterator[Callable[..., Result]]:
    """Run ``python -m eventtrain`` and send it a signal once it has printed two epochs."""
    if os.name == "nt":
        pytest.skip("Windows sends no SIGINT to one process")
    # Let Ctrl-C work in child processes, also where this process ignores it.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)

    def call(number: signal.Signals, *arguments: str, cwd: Path) -> Result:
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "eventtrain", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            cwd=cwd,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.split()[:1] == ["1"]:
                    break
            process.send_signal(number)
            try:
                printed = process.communicate(timeout=60)
                return process.returncode, *printed
            finally:
                process.kill()

    yield call
    signal.signal(signal.SIGINT, previous)
