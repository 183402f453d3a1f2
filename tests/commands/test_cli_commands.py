"""The commands train, replay, events and doctor, and what all have in common."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import eventtrain
from eventtrain import EVENTS, get_data
from eventtrain.commands import doctor

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
Result = tuple[int, str, str]
Call = Callable[..., Result]

NETS = """
import torch
from eventtrain import DataBunch, Dataset, Learner, get_dls, get_model

asked = []

def make(batch_size=8, lr=0.1):
    print("given", batch_size, lr)
    x = torch.randn(64, 5)
    y = torch.randint(0, 3, (64,))
    data = DataBunch(*get_dls(Dataset(x, y), Dataset(x, y), batch_size), c=3)
    model, opt = get_model(data, lr=lr)
    return Learner(model, opt, torch.nn.functional.cross_entropy, data)

def bare():
    return make()

def needing(lr, *, batch_size, seed):
    print("seed", seed)
    return make(batch_size, lr)

def anything(**options):
    print(sorted(options.items()))
    return make()

def a_pair():
    learn = make()
    return learn.model, learn.opt

def nothing():
    pass

def odd(width, depth):
    pass

def dividing():
    return 1 / 0

def failing():
    learn = make()
    learn.loss_func = lambda out, yb: 1 / 0
    return learn

def regression():
    x = torch.randn(64, 5)
    data = DataBunch(*get_dls(Dataset(x, x[:, :1]), Dataset(x, x[:, :1]), 8), c=1)
    return Learner(*get_model(data, lr=0.01), torch.nn.functional.mse_loss, data)

def diverging():
    learn = make(lr=1e30)
    return learn

def function_as_model():
    learn = make()
    net = learn.model
    learn.model = lambda xb: net(xb)
    return learn
"""


def run_cli(*arguments: str, cwd: Path | None = None, **environment: str) -> Result:
    """Run ``python -m eventtrain`` and return exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "eventtrain", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def call(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Call]:
    """Call ``main`` in this process and in an empty folder that holds ``nets.py`` alone."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield call
    for name in set(sys.modules) - known:
        if name.startswith("_eventtrain_"):
            del sys.modules[name]


def history(folder: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads((folder / "history.json").read_text(), parse_constant=refuse)


# train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """One training on the digits: its folder and what it printed."""
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra 'demo')")
    out = tmp_path_factory.mktemp("train") / "new" / "folder"
    return out, run_cli("train", "--epochs", "3", "--out", str(out), "--log")


def test_training_leaves_four_files_and_says_where(trained: tuple[Path, Result]) -> None:
    out, (code, stdout, stderr) = trained
    assert (code, stderr) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == [
        "config.toml", "events.jsonl", "history.json", "model.pt"
    ]  # fmt: skip
    assert stdout.endswith(f"saved in {out}: config.toml, history.json, model.pt, events.jsonl\n")


def test_the_history_holds_a_row_an_epoch(trained: tuple[Path, Result]) -> None:
    content = history(trained[0])
    assert [row["epoch"] for row in content["history"]] == [0, 1, 2]
    assert content["history"][-1]["valid_accuracy"] > 0.8
    assert (content["outcome"], content["epochs"], content["steps"]) == ("completed", 3, 69)
    assert (content["data"], content["seed"]) == ("digits", 0)


def test_the_saved_model_is_the_trained_one(trained: tuple[Path, Result]) -> None:
    _, _, x, y = get_data("digits")
    model = torch.nn.Sequential(torch.nn.Linear(64, 50), torch.nn.ReLU(), torch.nn.Linear(50, 10))
    model.load_state_dict(torch.load(trained[0] / "model.pt", weights_only=True))
    share = (model(x).argmax(1) == y).float().mean().item()
    assert share == pytest.approx(history(trained[0])["history"][-1]["valid_accuracy"], abs=1e-6)


def test_the_log_of_a_training_can_be_replayed(trained: tuple[Path, Result]) -> None:
    code, stdout, stderr = run_cli("replay", str(trained[0] / "events.jsonl"))
    assert (code, stderr) == (0, "")
    assert re.search(r"^  begin_epoch +x 3, epochs 0 to 2$", stdout, re.MULTILINE)
    assert re.search(r"^after_fit +completed after", stdout, re.MULTILINE)


def test_the_same_seed_gives_the_same_model(call: Call) -> None:
    for out in ("a", "b", "c"):
        seed = "1" if out == "c" else "0"
        assert call("train", "--data", "nets.py:make", "--seed", seed, "--out", out)[0] == 0
    a, b, c = (torch.load(f"{out}/model.pt", weights_only=True) for out in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_without_log_no_log_is_written(call: Call, tmp_path: Path) -> None:
    assert call("train", "--data", "nets.py:bare", "--epochs", "1", "--out", "out")[0] == 0
    assert sorted(os.listdir("out")) == ["config.toml", "history.json", "model.pt"]


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (("nets.py:make",), "given 8 0.1"),
        (("nets.py:make", "--lr", "0.3"), "given 8 0.3"),
        (("nets.py:make", "--batch-size", "16", "--lr", "0.3"), "given 16 0.3"),
        (("nets.py:needing",), "seed 0\ngiven 64 0.5"),
        (("nets.py:needing", "--seed", "7", "--lr", "0.3"), "seed 7\ngiven 64 0.3"),
        (("nets.py:anything", "--lr", "0.3"), "[('lr', 0.3), ('seed', 0)]"),
    ],
)
def test_a_factory_is_given_what_it_takes(
    arguments: tuple[str, ...], printed: str, call: Call
) -> None:
    code, stdout, stderr = call("train", "--epochs", "1", "--data", *arguments)
    assert (code, stderr) == (0, "")
    assert stdout.startswith(printed)


def test_a_factory_can_import_what_lies_beside_its_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "beside_it.py").write_text("from nets import bare\n")
    (tmp_path / "sub" / "nets.py").write_text(NETS)
    (tmp_path / "sub" / "torch.py").write_text("from beside_it import bare as make\n")
    try:
        code, _, stderr = call("train", "--epochs", "1", "--data", "sub/torch.py:make")
    finally:
        for name in ("nets", "beside_it"):
            sys.modules.pop(name, None)
    assert (code, stderr) == (0, "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nets.py:mkae", "has nothing called 'mkae'. Did you mean 'make'? Functions there: make, "),
        ("nets.py:asked", "is an object of type list, and no function"),
        ("none.py:make", "there is no file none.py: write PATH.py:NAME"),
        ("nets.py:a_pair", "returned a tuple of 2: it must return eventtrain.Learner("),
        ("nets.py:nothing", "returned None: it must return eventtrain.Learner("),
        (
            "nets.py:odd",
            "needs depth, width: give that by --set arguments.depth=..., in the table [arguments]",
        ),
        ("broken.py:make", "broken.py cannot be imported: SyntaxError: "),
        ("needy.py:make", "cannot be imported: ModuleNotFoundError: No module named 'not_there'"),
    ],
)
def test_a_wrong_factory_is_told_in_one_line(
    data: str, message: str, call: Call, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("x = (\n")
    (tmp_path / "needy.py").write_text("import not_there\n")
    code, _, stderr = call("train", "--data", data)
    assert code == 1
    assert stderr.startswith("Error: ")
    assert message in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "eventtrain-run" / "history.json").exists()


def test_an_option_that_the_factory_does_not_take_is_refused(call: Call) -> None:
    code, _, stderr = call("train", "--data", "nets.py:bare", "--lr", "1")
    assert (code, stderr.count("\n")) == (1, 1)
    assert "takes no lr: give it that parameter, or leave out --lr" in stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--data", "digist"),
        ("--data", "nets.py"),
        ("--data", "nets:make"),
        ("--epochs", "0"),
        ("--batch-size", "0"),
        ("--lr", "0"),
        ("--lr", "nan"),
        ("--seed", "-1"),
        ("--device", "toaster"),
        ("--device", "cuda:99"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_option(
    option: str, value: str, call: Call
) -> None:
    code, stdout, stderr = call("train", option, value)
    assert (code, stdout) == (2, "")
    assert f"Invalid value for '{option}'" in stderr


def test_an_exception_in_training_takes_two_lines_and_is_in_the_history(
    call: Call, tmp_path: Path
) -> None:
    code, _, stderr = call("train", "--data", "nets.py:failing", "--out", "out", "--log")
    assert code == 1
    assert stderr == (
        "Error: ZeroDivisionError: division by zero\n"
        "(eventtrain --traceback COMMAND ... shows where it comes from)\n"
    )
    assert history(tmp_path / "out")["outcome"] == "failed"
    assert sorted(os.listdir("out")) == ["config.toml", "events.jsonl", "history.json"]
    assert "failed, ZeroDivisionError: division by zero" in call("replay", "out/events.jsonl")[1]


@pytest.mark.parametrize("data", ["nets.py:dividing", "nets.py:failing"])
def test_traceback_shows_where_an_error_comes_from(data: str, call: Call) -> None:
    code, _, stderr = call("--traceback", "train", "--data", data)
    assert code == 1
    assert "Traceback (most recent call last)" in stderr
    assert "nets.py" in stderr
    assert stderr.endswith("Error: ZeroDivisionError: division by zero\n")


def test_traceback_is_for_every_command(call: Call, tmp_path: Path) -> None:
    (tmp_path / "photo").write_text("hello\n")
    assert "Traceback" not in call("replay", "photo")[2]
    assert "Traceback" in call("--traceback", "replay", "photo")[2]
    assert "Traceback" in call("--traceback", "demo", "--out", "photo")[2]


def test_a_model_without_class_labels_is_trained_without_accuracy(
    call: Call, tmp_path: Path
) -> None:
    code, stdout, stderr = call("train", "--data", "nets.py:regression", "--metric", "none")
    assert (code, stderr) == (0, "")
    assert "accuracy" not in stdout


def test_numbers_that_json_has_not_become_null(call: Call, tmp_path: Path) -> None:
    assert call("train", "--data", "nets.py:diverging", "--out", "out")[0] == 0
    assert history(tmp_path / "out")["history"][-1]["train_loss"] is None


def test_a_model_without_state_is_not_saved(call: Call) -> None:
    code, stdout, _ = call("train", "--data", "nets.py:function_as_model", "--out", "out")
    assert code == 0
    assert stdout.endswith("saved in out: config.toml, history.json\n")


@pytest.mark.parametrize("blocked", [".", "history.json", "model.pt"])
def test_a_folder_that_cannot_be_written_to_is_told_before_training(
    blocked: str, call: Call, tmp_path: Path
) -> None:
    if blocked == ".":
        (tmp_path / "out").write_text("kept")
    else:
        (tmp_path / "out" / blocked).mkdir(parents=True)
    code, stdout, stderr = call("train", "--data", "nets.py:make", "--out", "out")
    assert (code, stdout) == (1, "")
    assert stderr.startswith("Error: cannot write to out: ")
    assert stderr.count("\n") == 1


def test_without_scikit_learn_the_extra_is_named(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    code, _, stderr = call("train")
    assert code == 1
    assert stderr.endswith('needs scikit-learn: pip install "eventtrain[demo]"\n')
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_early_with_partial_results(
    number: signal.Signals, tmp_path: Path, call_and_signal: Call
) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    data = ("--data", "nets.py:make", "--log")
    code, stdout, stderr = call_and_signal(
        number, "train", "--epochs", "1000000", "--out", "out", *data, cwd=tmp_path
    )
    assert (code, stderr) == (128 + number, "")
    assert f"ended early by {number.name}" in stdout
    content = history(tmp_path / "out")
    assert (content["outcome"], content["reason"]) == ("cancelled", number.name)
    assert content["epochs"] >= 2
    assert torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    last = (tmp_path / "out" / "events.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["event"] == "after_fit"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.toml", "events.jsonl", "history.json", "model.pt"
    ]  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu_saves_a_model_for_the_cpu(call: Call) -> None:
    code, stdout, stderr = call("train", "--device", "cuda", "--epochs", "1", "--out", "out")
    assert (code, stderr) == (0, "")
    assert " on cuda" in stdout
    state = torch.load("out/model.pt", weights_only=True)
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}


# replay


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_replay_refuses_what_is_no_file(name: str, call: Call) -> None:
    code, stdout, stderr = call("replay", name)
    assert (code, stdout) == (2, "")
    assert "Invalid value for 'FILE'" in stderr


def test_replay_refuses_a_foreign_file_in_one_line(call: Call) -> None:
    code, stdout, stderr = call("replay", "nets.py")
    assert (code, stdout) == (1, "")
    assert stderr.startswith("Error: nets.py: line 1 is none of an event log")
    assert stderr.count("\n") == 1


# events


def test_events_shows_the_picture_and_every_event_with_its_fields(call: Call) -> None:
    code, stdout, stderr = call("events")
    assert (code, stderr) == (0, "")
    assert re.search(r"^    begin_train$", stdout, re.MULTILINE)
    for event in EVENTS:
        row = rf"^{event.name} +\w+ {event.scope}: {event.meaning}\n +{', '.join(event.fields)}$"
        assert re.search(row, stdout, re.MULTILINE), event.name


def test_events_as_json_is_the_table(call: Call) -> None:
    code, stdout, _ = call("events", "--json")
    rows = json.loads(stdout)
    assert code == 0
    assert [row["name"] for row in rows] == [event.name for event in EVENTS]
    assert set(rows[0]) == {"name", "scope", "kind", "fields", "meaning"}


# doctor


def test_doctor_tells_versions_devices_and_folders(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EVENTTRAIN_DATA", str(tmp_path))
    code, stdout, stderr = call("doctor")
    assert (code, stderr) == (0, "")
    for name in ("python", "eventtrain", "torch", "blinker", "click", "cuda", "mps", "MNIST"):
        assert re.search(rf"^{name} +\S", stdout, re.MULTILINE), name
    assert f"not there: {tmp_path} (EVENTTRAIN_DATA)" in stdout


@pytest.mark.parametrize("where", ["", "mnist"])
def test_doctor_finds_mnist_where_get_data_would(
    where: str, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / where).mkdir(exist_ok=True)
    (tmp_path / where / "train-images-idx3-ubyte.gz").touch()
    (tmp_path / where / "train-labels-idx1-ubyte").touch()
    monkeypatch.setenv("EVENTTRAIN_DATA", str(tmp_path))
    (place,) = json.loads(call("doctor", "--json")[1])["mnist"]
    assert place["present"]
    assert Path(place["folder"]) == tmp_path / where
    assert call("doctor")[1].endswith("\nnothing is missing\n")


def test_doctor_looks_into_the_cache_folder(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("EVENTTRAIN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (place,) = json.loads(call("doctor", "--json")[1])["mnist"]
    assert place == {
        "source": "cache folder",
        "folder": str(tmp_path / "eventtrain" / "mnist"),
        "present": False,
    }
    assert 'get_data("mnist") downloads it' in call("doctor")[1]


def versions(monkeypatch: pytest.MonkeyPatch, **replaced: str | None) -> None:
    original = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda n: replaced.get(n, original(n)))


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, 'problem: blinker is missing: pip install "blinker>=1.9"'),
        ("1.8.2", 'problem: blinker 1.8.2 is too old: pip install "blinker>=1.9"'),
    ],
)
def test_doctor_fails_without_what_eventtrain_needs(
    version: str | None, message: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(monkeypatch, blinker=version)
    code, stdout, _ = call("doctor")
    assert code == 1
    assert message in stdout
    code, stdout, _ = call("doctor", "--json")
    assert (code, json.loads(stdout)["ok"]) == (1, False)


def test_doctor_names_the_extra_that_brings_what_is_missing(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(monkeypatch, matplotlib=None)
    code, stdout, _ = call("doctor")
    assert code == 0
    assert 'optional: matplotlib is missing: pip install "eventtrain[demo]"' in stdout


def test_doctor_knows_the_packages_and_extras_of_the_metadata() -> None:
    text = (ROOT / "setup.cfg").read_text()
    for name, least in doctor._CORE.items():
        assert f"{name}>={'.'.join(map(str, least))}" in text
    for name, extra in doctor._EXTRAS.items():
        section = text.partition("[options.extras_require]")[2].partition(f"\n{extra} =")[2]
        assert f"    {name}>=" in section.partition(" =\n")[0]


def run_where_it_is_broken(package: str, command: str, folder: Path) -> Result:
    """Run a command where ``package`` is installed and cannot be imported."""
    (folder / f"{package}.py").write_text(
        f"raise ModuleNotFoundError('no {package} here', name='{package}')"
    )
    path = os.pathsep.join([str(folder), str(ROOT)])
    return run_cli(command, cwd=folder, PYTHONPATH=path)


def test_doctor_works_without_blinker(tmp_path: Path) -> None:
    code, stdout, stderr = run_where_it_is_broken("blinker", "doctor", tmp_path)
    assert (code, stderr) == (0, "")  # it is installed, by its metadata
    assert re.search(rf"^eventtrain +{eventtrain.__version__}$", stdout, re.MULTILINE)


def test_doctor_works_without_torch_and_says_so(tmp_path: Path) -> None:
    code, stdout, stderr = run_where_it_is_broken("torch", "doctor", tmp_path)
    assert (code, stderr) == (1, "")
    assert "problem: torch cannot be imported: ModuleNotFoundError: no torch here" in stdout


@pytest.mark.parametrize("package", ["torch", "blinker"])
@pytest.mark.parametrize("command", ["train", "explain"])
def test_a_command_that_needs_a_missing_package_says_who_can_help(
    command: str, package: str, tmp_path: Path
) -> None:
    assert run_where_it_is_broken(package, command, tmp_path) == (
        1, "", f"Error: {package} is missing: `eventtrain doctor` says what to install\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.13.0+cpu", (2, 13)), ("1.9", (1, 9)), ("2.4.0a0", (2, 4)), ("2", (2,))],
)
def test_doctor_reads_version_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert doctor._numbers(version) == numbers


# All of them


@pytest.mark.parametrize("command", ["train", "replay", "explain", "events", "plugins", "doctor"])
def test_every_command_has_help_and_is_listed(command: str, call: Call) -> None:
    code, stdout, _ = call(command, "--help")
    assert code == 0
    assert f"Usage: eventtrain {command}" in stdout
    assert re.search(rf"^  {command} +\S", call("--help")[1], re.MULTILINE)


def test_help_says_how_to_complete_in_the_shell(call: Call) -> None:
    assert 'eval "$(_EVENTTRAIN_COMPLETE=bash_source eventtrain)"' in call("--help")[1]


def test_completion_knows_the_commands() -> None:
    done = run_cli(_EVENTTRAIN_COMPLETE="bash_complete", COMP_WORDS="eventtrain re", COMP_CWORD="1")
    assert done == (0, "plain,replay\n", "")


def test_the_version_is_that_of_the_package(call: Call) -> None:
    assert call("--version")[1] == f"eventtrain {eventtrain.__version__}\n"


def test_a_reader_that_leaves_early_is_no_error(trained: tuple[Path, Result]) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "eventtrain", "events"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
