"""``eventtrain train`` with a file, and what is saved of it."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., tuple[int, str, str]]

NETS = """
import torch
from eventtrain import Callback, DataBunch, Learner, TensorLoader

def make(lr, hidden=3):
    print("hidden", hidden, "lr", lr)
    x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
    model = torch.nn.Sequential(torch.nn.Linear(5, hidden), torch.nn.Linear(hidden, 3))
    loader = TensorLoader(x, y, 8)
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    return Learner(model, opt, torch.nn.functional.cross_entropy, DataBunch(loader, loader))

class Greeting(Callback):
    def __init__(self, text):
        self.text = text

    def begin_fit(self):
        print(self.text, self.run.epochs, self.run.total_steps)

def no_callback():
    return 3
"""
RUN = """
data = "nets.py:make"
epochs = 2
lr = 0.25

[arguments]
hidden = 4

[callbacks."nets.py:Greeting"]
text = "hello"

[callbacks.Checkpoint]
folder = "checkpoints"
"""


@pytest.fixture
def call(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Call]:
    """Call ``main`` in this process and in a folder that holds ``nets.py`` and ``run.toml``."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "run.toml").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    pytest.importorskip("tomli_w")
    yield call
    for name in set(sys.modules) - known:
        if name.startswith("_eventtrain_"):
            del sys.modules[name]


def saved(folder: str = "eventtrain-run") -> dict[str, Any]:
    return tomllib.loads(Path(folder, "config.toml").read_text())


def refused(call: Call, *arguments: str) -> str:
    """The last line of what is said; nothing is trained."""
    code, printed, said = call("train", *arguments)
    assert code != 0
    assert "epoch " not in printed
    return said.strip().splitlines()[-1]


def test_a_file_gives_options_arguments_and_callbacks(call: Call) -> None:
    code, printed, _ = call("train", "run.toml")
    assert code == 0
    assert "hidden 4 lr 0.25\n" in printed
    assert "hello 2 None\n" in printed
    assert len(list(Path("checkpoints").iterdir())) > 0


def test_the_command_line_is_above_set_and_set_above_the_file(call: Call) -> None:
    _, printed, _ = call(
        *("train", "--set", "lr=0.5", "--epochs", "1", "run.toml"),
        *("--set", "epochs=3", "--set", "arguments.hidden=6"),
    )
    assert "hidden 6 lr 0.5\n" in printed
    assert "hello 1 None\n" in printed


def test_what_is_saved_trains_the_same_again(call: Call) -> None:
    call("train", "run.toml", "--set", "callbacks.'nets.py:Greeting'.text=good day", "--out", "a")
    first = json.loads(Path("a", "history.json").read_text())
    assert saved("a")["callbacks"]["nets.py:Greeting"] == {"text": "good day"}
    _, printed, _ = call("train", "a/config.toml", "--set", "out=b")
    again = json.loads(Path("b", "history.json").read_text())
    assert "good day 2 None\n" in printed
    assert {**saved("a"), "out": "b"} == saved("b")
    losses = [[row["train_loss"] for row in each["history"]] for each in (first, again)]
    assert losses[0] == losses[1]


def test_it_is_saved_before_the_training_begins(call: Call) -> None:
    failing = (
        Path("nets.py").read_text().replace("print(self.text,", "raise RuntimeError(self.text,")
    )
    Path("nets.py").write_text(failing)
    code, *_ = call("train", "run.toml")
    assert code == 1
    assert saved()["epochs"] == 2


def test_that_of_an_earlier_run_stays_where_nothing_can_be_trained(call: Call) -> None:
    call("train", "run.toml")
    refused(call, "run.toml", "--set", "epochs=9", "--set", "arguments.hiden=3")
    assert saved()["epochs"] == 2


def test_without_a_file_it_says_what_the_options_said(call: Call) -> None:
    call("train", "--data", "nets.py:make", "--epochs", "1", "--seed", "3")
    assert saved() == {
        "data": "nets.py:make",
        "epochs": 1,
        "seed": 3,
        "metric": "accuracy",
        "device": "auto",
        "out": "eventtrain-run",
        "strategy": "ddp",
        "log_events": False,
    }


@pytest.mark.parametrize(
    ("arguments", "length"),
    [
        (["--steps", "3"], "hello None 3"),
        (["--set", "epochs=5"], "hello 5 None"),
        (["steps.toml"], "hello None 7"),
        (["steps.toml", "--epochs", "1"], "hello 1 None"),
    ],
)
def test_the_length_is_what_is_nearest_to_the_command_line(
    call: Call, arguments: list[str], length: str
) -> None:
    Path("steps.toml").write_text(RUN.replace("epochs = 2", "steps = 7"))
    given = arguments if arguments[0].endswith(".toml") else ["run.toml", *arguments]
    _, printed, said = call("train", *given)
    assert f"{length}\n" in printed, said
    assert len({"epochs", "steps"} & set(saved())) == 1


def test_epochs_and_steps_in_one_place_are_refused(call: Call) -> None:
    assert "one length" in refused(call, "run.toml", "--set", "steps=3")
    assert "one length" in refused(call, "run.toml", "--epochs", "1", "--steps", "3")


def test_a_run_goes_on_from_the_newest_checkpoint(call: Call) -> None:
    call("train", "run.toml")
    _, printed, _ = call("train", "run.toml", "--epochs", "3", "--resume", "auto")
    rows = [line.split()[0] for line in printed.splitlines() if line.split()[0].isdigit()]
    assert rows == ["2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch=3", "in --set epoch=3: nothing is called 'epoch'. Did you mean 'epochs'?"),
        ("epochs=x", "in --set epochs=x: epochs must be a whole number, got 'x'."),
        ("epochs=2.5", "epochs must be a whole number, got 2.5."),
        ("epochs=true", "epochs must be a whole number, got True."),
        ("epochs=0", "'epochs' in --set epochs=0: 0 is not in the range"),
        ("lr='0.1'", "lr must be a number, got '0.1'."),
        ("log-events=yes", "log_events must be true or false, got 'yes'."),
        ("data=3", "data must be text, got 3."),
        ("x", "'x' is not of the form KEY=VALUE"),
        ("a b=3", "'a b=3' is not of the form KEY=VALUE"),
        ("help=true", "nothing is called 'help'"),
        ("callbacks=3", "callbacks is a table, got 3."),
        ("callbacks.Checkpoint=3", "callbacks.Checkpoint must be a table of options, got 3"),
        ("callbacks.Chekpoint.folder='x'", "has no Chekpoint. Did you mean 'Checkpoint'?"),
        ("callbacks.Checkpoint.fold='x'", "takes no fold. Did you mean 'folder'?"),
        ("callbacks.Checkpoint.keep_last=0", "[callbacks.Checkpoint]: keep_last"),
        ("callbacks.'nets.py:no_callback'={}", "makes 3, which is no callback"),
        ("arguments.hiden=3", "takes no hiden. Did you mean 'hidden'? It takes lr, hidden"),
        ("plugins.prometheus=3", "plugins.prometheus must be a table of options"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_before_anything_is_trained(
    call: Call, text: str, said: str
) -> None:
    assert said in refused(call, "run.toml", "--set", text)


def test_a_name_in_the_file_that_there_is_not_is_told_with_the_file(call: Call) -> None:
    Path("run.toml").write_text("epoch = 3\n")
    assert "in run.toml: nothing is called 'epoch'." in refused(call, "run.toml")


def test_a_file_that_is_no_toml_is_told_with_line_and_column(call: Call) -> None:
    Path("run.toml").write_text("epochs = \n")
    assert "run.toml is no TOML: Invalid value (at line 1, column 10)" in refused(call, "run.toml")


def test_a_file_that_is_not_there_is_told(call: Call) -> None:
    assert "none.toml cannot be read: No such file" in refused(call, "none.toml")


def test_arguments_are_refused_where_there_is_no_factory(call: Call) -> None:
    said = refused(call, "--set", "arguments.hidden=3")
    assert "digits is none: hidden would go nowhere." in said


def test_a_value_that_toml_has_not_is_refused_before_the_training(call: Call) -> None:
    said = refused(call, "run.toml", "--plugin", "some", "--plugin-option", "some.when=None")
    assert "cannot hold what an option is given" in said
