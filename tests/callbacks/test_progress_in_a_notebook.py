"""Progress in a notebook: what a real kernel leaves in the outputs of its cells."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

MISSING = [name for name in ("tqdm", "ipykernel", "ipywidgets", "nbclient") if not find_spec(name)]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"needs {', '.join(MISSING)} (extra 'dev'): pip install -e '.[dev]'"
)

EXECUTE = """\
import json, sys
import nbclient, nbformat
cells = [nbformat.v4.new_code_cell(source) for source in json.load(sys.stdin)]
notebook = nbformat.v4.new_notebook(cells=cells)
nbclient.NotebookClient(notebook, timeout=120, allow_errors=True).execute()
json.dump(notebook, sys.stdout)
"""

BEGIN = """\
import signal
import tempfile
import torch
from torch.nn.functional import mse_loss
from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import Checkpoint, Progress

def make():
    torch.manual_seed(0)
    x, y = torch.randn(12, 3), torch.randn(12, 2)
    model = torch.nn.Linear(3, 2)
    loaders = TensorLoader(x, y, 4), TensorLoader(x, y, 6)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return Learner(model, opt, mse_loss, DataBunch(*loaders))

def watched(*others, **options):
    return Runner([AvgStatsCallback(), Progress(every=0, **options), *others])

def in_epoch_1(run, do):
    run.on("after_loss", lambda run: do(), during="train", when=lambda run: run.epoch == 1)
    return run
"""

CELLS = {
    "fit": "result = watched().fit(3, make())",
    "two fits": "run = watched()\nfor _ in range(2):\n    result = run.fit(2, make())",
    "steps": "result = watched().fit(steps=6, learn=make(), validate_every=2)",
    "cancelled": """\
run = watched()
result = in_epoch_1(run, lambda: run.token.cancel("fit", "enough")).fit(3, make())""",
    "failed": "result = in_epoch_1(watched(), lambda: 1 / 0).fit(3, make())",
    "interrupted": """\
result = in_epoch_1(watched(), lambda: signal.raise_signal(signal.SIGINT)).fit(3, make())""",
    "resumed": """\
folder = tempfile.mkdtemp()
result = Runner(Checkpoint(folder)).fit(2, make())
result = watched(Checkpoint(folder)).fit(4, make(), resume="auto")""",
    "validate": "result = watched().validate(make())",
    "predict": "learn = make()\nresult = watched().predict(learn, learn.data.valid_dl)",
    "long": "result = watched().fit(40, make())",
    "others' columns": """\
run = watched()
run.on("after_epoch", lambda run: run.history[-1].update({"<b>": 1.5, "t": torch.ones(())}))
result = run.fit(1, make())""",
    "metrics": "result = watched(metrics=['valid_loss']).fit(1, make())",
    "aside": """\
run = watched()
run.on("after_batch", lambda run: run.validate_now() and None, during="train", every=3)
result = run.fit(2, make())""",
    "no table": "result = watched(table=False).fit(2, make())",
    "no bars": "result = watched(disable=True).fit(2, make())",
    "own report": """\
lines = []
run = Runner([AvgStatsCallback(report=lines.append), Progress()])
result = run.fit(2, make())
print(len(lines))""",
    "a file": """\
import io
file = io.StringIO()
result = Runner([AvgStatsCallback(), Progress(file=file, disable=False)]).fit(1, make())
print("epochs: 100%" in file.getvalue())""",
    "none left": "result = watched(leave=False).fit(2, make())",
}


class Output:
    """What a cell has put out.

    Attributes:
        bars: The texts beside each bar, and its style.
        hidden: How many of them are not seen any more.
        tables: The rows of each table, titles first.
        texts: What was printed.
        error: The exception's name, ``None`` for none.
    """

    def __init__(self, outputs: list[Any], widgets: dict[str, Any]) -> None:
        self.bars: list[tuple[str, str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.texts, self.error, self.others, self.hidden = "", None, 0, 0
        for output in outputs:
            data = output.get("data", {})
            if view := data.get("application/vnd.jupyter.widget-view+json"):
                container = widgets[view["model_id"]]["state"]
                self.bars.append(_bar(container, widgets))
                self.hidden += _part(container["layout"], widgets)["visibility"] == "hidden"
            elif "<table" in (html := "".join(data.get("text/html", ""))):
                rows = re.findall(r"<tr>(.*?)</tr>", html)
                cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
                self.tables.append([[unescape(cell) for cell in row] for row in cells])
            elif output["output_type"] == "stream":
                self.texts += "".join(output["text"])
            elif output["output_type"] == "error":
                self.error = output["ename"]
            else:
                self.others += 1


def _part(name: str, widgets: dict[str, Any]) -> Any:
    return widgets[name.removeprefix("IPY_MODEL_")]["state"]


def _bar(container: dict[str, Any], widgets: dict[str, Any]) -> tuple[str, str, str]:
    left, bar, right = (_part(name, widgets) for name in container["children"])
    texts = [unescape(side["value"]).replace("\u2007", " ") for side in (left, right)]
    return texts[0], texts[1], bar["bar_style"]


@pytest.fixture(scope="module")
def outputs() -> dict[str, Output]:
    """All cells, run by one kernel."""
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE],
        input=json.dumps([BEGIN, *CELLS.values()]),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    notebook = json.loads(done.stdout)
    widgets = notebook["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    first, *cells = notebook["cells"]
    assert first["outputs"] == []
    return {name: Output(cell["outputs"], widgets) for name, cell in zip(CELLS, cells, strict=True)}


def column(table: list[list[str]], title: str) -> list[str]:
    at = table[0].index(title)
    return [row[at] for row in table[1:]]


def test_a_fit_leaves_one_bar_and_one_table_with_a_line_an_epoch(
    outputs: dict[str, Output],
) -> None:
    output = outputs["fit"]
    ((left, right, style),), (table,) = output.bars, output.tables
    assert table[0] == ["epoch", "train_loss", "valid_loss", "seconds"]
    assert column(table, "epoch") == ["0", "1", "2"]
    assert all(re.fullmatch(r"\d\.\d{4}", cell) for row in table[1:] for cell in row[1:])
    assert left.startswith("fit: 100%") and "9/9" in right and style == "success"
    assert (output.texts, output.error, output.others) == ("", None, 0)


def test_two_fits_in_a_cell_have_a_bar_and_a_table_each(outputs: dict[str, Output]) -> None:
    output = outputs["two fits"]
    assert len(output.bars) == 2
    assert [column(table, "epoch") for table in output.tables] == [["0", "1"], ["0", "1"]]
    assert output.texts == ""


def test_a_fit_by_steps_has_a_line_a_validation_and_a_bar_over_steps(
    outputs: dict[str, Output],
) -> None:
    output = outputs["steps"]
    ((_, right, style),), (table,) = output.bars, output.tables
    assert table[0][:2] == ["epoch", "step"]
    assert column(table, "step") == ["2", "4", "6"]
    assert "6/6" in right and style == "success"
    assert output.texts == ""


def test_a_fit_that_was_cancelled_says_where_and_has_the_rows_up_to_there(
    outputs: dict[str, Output],
) -> None:
    output = outputs["cancelled"]
    ((left, right, _),), (table,) = output.bars, output.tables
    assert left.startswith("cancelled in epoch 1:") and "4/9" in right
    assert column(table, "epoch") == ["0", "1"]
    assert (output.texts, output.error) == ("", None)


@pytest.mark.parametrize(
    ("cell", "error", "rows", "says"),
    [
        ("failed", "ZeroDivisionError", ["0"], "failed in epoch 1:"),
        ("interrupted", "KeyboardInterrupt", ["0", "1"], "cancelled in epoch 1:"),
    ],
)
def test_a_fit_that_ends_in_an_exception_leaves_its_bar_and_its_table(
    cell: str, error: str, rows: list[str], says: str, outputs: dict[str, Output]
) -> None:
    output = outputs[cell]
    ((left, _, style),), (table,) = output.bars, output.tables
    assert left.startswith(says) and style == "danger"
    assert column(table, "epoch") == rows
    assert (output.texts, output.error) == ("", error)


def test_a_fit_that_is_resumed_goes_on_where_it_stands(outputs: dict[str, Output]) -> None:
    output = outputs["resumed"]
    ((_, right, style),), (table,) = output.bars, output.tables
    assert column(table, "epoch") == ["2", "3"]
    assert "12/12" in right and style == "success"


def test_a_validation_alone_has_a_table_of_one_line(outputs: dict[str, Output]) -> None:
    output = outputs["validate"]
    (table,) = output.tables
    assert len(output.bars) == 1
    assert (table[0], len(table)) == (["valid_loss"], 2)
    assert output.texts == ""


def test_a_prediction_alone_has_a_bar_and_no_table(outputs: dict[str, Output]) -> None:
    output = outputs["predict"]
    assert (len(output.bars), output.tables, output.texts) == (1, [], "")


def test_of_many_rows_the_last_are_shown_and_the_others_counted(
    outputs: dict[str, Output],
) -> None:
    (table,) = outputs["long"].tables
    titles, folded, *rows = table
    assert folded == ["10 rows before these are in run.history"]
    assert [row[0] for row in rows] == [str(epoch) for epoch in range(10, 40)]
    assert len(titles) == len(rows[0])


def test_columns_of_others_are_shown_where_they_are_numbers(outputs: dict[str, Output]) -> None:
    (table,) = outputs["others' columns"].tables
    assert table[0] == ["epoch", "train_loss", "valid_loss", "<b>", "seconds"]
    assert column(table, "<b>") == ["1.5000"]


def test_the_columns_may_be_chosen(outputs: dict[str, Output]) -> None:
    (table,) = outputs["metrics"].tables
    assert table[0] == ["epoch", "valid_loss", "seconds"]


def test_a_validation_within_an_epoch_has_a_line_of_its_own(outputs: dict[str, Output]) -> None:
    output = outputs["aside"]
    (table,) = output.tables
    assert column(table, "epoch") == ["0", "0", "1", "1"]
    assert [bool(cell) for cell in column(table, "step")] == [True, False, True, False]
    assert (len(output.bars), output.texts) == (1, "")


@pytest.mark.parametrize(("cell", "bars"), [("no table", 1), ("no bars", 0)])
def test_without_a_table_the_rows_are_printed(
    cell: str, bars: int, outputs: dict[str, Output]
) -> None:
    output = outputs[cell]
    assert (len(output.bars), output.tables) == (bars, [])
    assert [line.split()[0] for line in output.texts.splitlines()] == ["epoch", "0", "1"]


def test_without_a_table_the_metrics_stand_beside_the_bar(outputs: dict[str, Output]) -> None:
    ((_, right, _),) = outputs["no table"].bars
    assert "valid_loss=" in right


def test_a_report_of_ones_own_gets_every_line_all_the_same(outputs: dict[str, Output]) -> None:
    assert outputs["own report"].texts == "3\n"
    assert len(outputs["own report"].tables) == 1


def test_bars_that_are_to_go_into_a_file_are_text(outputs: dict[str, Output]) -> None:
    output = outputs["a file"]
    assert output.bars == output.tables == []
    assert output.texts.endswith("True\n")


def test_a_bar_that_is_not_to_be_left_is_gone_and_the_table_is_there(
    outputs: dict[str, Output],
) -> None:
    output = outputs["none left"]
    assert output.hidden == 1
    assert outputs["fit"].hidden == 0
    assert len(output.tables) == 1
