"""A page about runs: its numbers are those of the run, it is whole, and nothing in it is markup."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eventtrain import AvgStatsCallback, EventLog, Learner, Runner, accuracy
from eventtrain.callbacks import (
    Checkpoint,
    GradientAccumulation,
    History,
    JSONLLogger,
    OneCycle,
    Recorder,
    Timing,
)
from eventtrain.reports.charts import charts_of
from eventtrain.reports.html_text import element, table
from eventtrain.reports.run_facts import RunFacts, facts_of_folder, facts_of_run, named_apart
from eventtrain.reports.run_report import write_report

pytest.importorskip("plotly", reason="needs plotly (extra 'report')")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
MARKUP = "<img src=x onerror=document.title='owned'></script><b>"


class Texts(HTMLParser):
    """Collects the tags of a page, what is shown, and what stands in scripts by their id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self.scripts: dict[str | None, str] = {}
        self._inside: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._inside.append((tag, dict(attributes).get("id")))

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1][0] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.shown.append(data)
        elif self._inside[-1][0] == "script":
            self.scripts[self._inside[-1][1]] = data


def read(path: Path) -> tuple[Texts, list[dict[str, Any]]]:
    """The parts of a page, and what it has of each run."""
    texts = Texts(path.read_text(encoding="utf-8"))
    data = json.loads(texts.scripts["eventtrain-report"], parse_constant=pytest.fail)
    return texts, data["runs"]


def fit(folder: Path, learner: Learner, epochs: int = 3, *more: Any) -> Runner:
    """A run that leaves everything a report can show."""
    run = Runner(
        [
            AvgStatsCallback(accuracy, report=None), EventLog(folder / "events.jsonl"),
            JSONLLogger(folder / "rows.jsonl"), Checkpoint(folder / "checkpoints"),
            Timing(history=True), *more,
        ]
    )  # fmt: skip
    with run.bus.profile() as profile:
        run.fit(epochs, learner)
    profile.to_json(folder / "profile.json")
    return run


@pytest.fixture
def page(learner: Learner, tmp_path: Path) -> tuple[Path, Runner]:
    """The page of a run of three epochs, made of its folder; and the run."""
    run = fit(tmp_path, learner)
    return write_report([facts_of_folder(tmp_path)], tmp_path / "report.html"), run


# Numbers


def test_the_rows_of_the_page_are_those_of_the_run(page: tuple[Path, Runner]) -> None:
    (run,) = read(page[0])[1]
    assert page[1].result is not None
    names = ("epoch", "train_loss", "valid_loss", "valid_accuracy")
    assert [[row[name] for name in names] for row in run["rows"]] == [
        [row[name] for name in names] for row in page[1].result.history
    ]
    assert run["outcome"] == "completed"
    assert run["missing"] == ["losses of single batches: History(batches=True), in run.report()"]


def test_the_points_of_a_curve_are_the_numbers_of_the_rows(page: tuple[Path, Runner]) -> None:
    texts, (run,) = read(page[0])
    charts = {each["title"]: each for each in json.loads(texts.scripts["eventtrain-charts"])}
    traces = {trace["name"]: trace for trace in charts["loss"]["traces"]}
    for name in ("train_loss", "valid_loss"):
        assert traces[name]["x"] == [0, 1, 2]
        assert traces[name]["y"] == [row[name] for row in run["rows"]]
    assert list(charts) == [
        "loss", "accuracy", "learning rate", "Time by scope, less what lies inside",
        "Time by part of the loop", "Time by handler",
    ]  # fmt: skip


def test_times_by_scope_add_up_to_that_of_the_fit(page: tuple[Path, Runner]) -> None:
    (run,) = read(page[0])[1]
    scopes = run["scopes"]
    assert scopes["fit > epoch > train > batch > step"][0] == 9
    assert scopes["fit > epoch > validate > batch"][0] == 6
    assert sum(own for _, _, own in scopes.values()) == pytest.approx(scopes["fit"][1])


def test_the_rates_of_the_page_are_those_that_stepped(learner: Learner, tmp_path: Path) -> None:
    seen: list[float] = []
    run = Runner([OneCycle(0.1), EventLog(tmp_path / "events.jsonl"), Recorder()])
    run.on("begin_step", lambda run: seen.append(run.opt.param_groups[0]["lr"]))
    run.fit(3, learner)
    (found,) = read(write_report([facts_of_folder(tmp_path)], tmp_path / "r.html"))[1]
    assert [rates["lr"] for _, _, rates in found["rates"]] == seen
    assert [steps for _, steps, _ in found["rates"]] == list(range(9))
    live = facts_of_run(run, "live")
    assert [row["lr"] for row in live.batches] == seen


def test_every_cancellation_is_on_the_page(learner: Learner, tmp_path: Path) -> None:
    run = Runner([EventLog(tmp_path / "events.jsonl"), GradientAccumulation(3)])
    run.on("after_loss", lambda run: run.token.cancel("batch", "a spike"), name="spike", every=4)
    run.on("after_epoch", lambda run: run.token.cancel("fit", "enough"), name="ender")
    run.fit(3, learner)
    texts, (found,) = read(write_report([facts_of_folder(tmp_path)], tmp_path / "r.html"))
    assert run.result is not None
    assert found["asked"] == len(run.result.cancellations)
    assert sum(each["times"] for each in found["cancellations"]) == found["asked"]
    assert {"spike, in after_loss", "ender, in after_epoch"} <= set(texts.shown)
    assert {"enough", "a spike"} <= set(texts.shown)


def test_a_fit_that_was_resumed_is_one_curve(make_learner: Any, tmp_path: Path) -> None:
    def make() -> Runner:
        log, saved = EventLog(tmp_path / "events.jsonl"), Checkpoint(tmp_path / "checkpoints")
        return Runner([AvgStatsCallback(report=None), log, saved])

    make().fit(2, make_learner())
    result = make().fit(4, make_learner(), resume="auto")
    facts = facts_of_folder(tmp_path)
    assert facts.rows_from == "EventLog"
    (chart, *_) = charts_of([facts])
    assert {tuple(trace["x"]) for trace in chart.traces} == {(0, 1, 2, 3)}
    valid = next(trace for trace in chart.traces if trace["name"] == "valid_loss")
    assert valid["y"] == [row["valid_loss"] for row in result.history]


def test_rows_of_validations_are_drawn_by_their_steps(learner: Learner, tmp_path: Path) -> None:
    run = Runner([AvgStatsCallback(report=None), EventLog(tmp_path / "events.jsonl")])
    run.fit(steps=6, learn=learner, validate_every=2)
    (chart, *_) = charts_of([facts_of_folder(tmp_path)])
    assert (chart.title, chart.x, chart.traces[0]["x"]) == ("loss", "step", [2, 4, 6])


def test_several_runs_stand_side_by_side(make_learner: Any, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for lr, folder in enumerate(folders, 1):
        folder.mkdir()
        learner = make_learner()
        learner.opt.param_groups[0]["lr"] = lr / 10
        fit(folder, learner)
    runs = [facts_of_folder(folder) for folder in folders]
    texts, found = read(write_report(runs, tmp_path / "both.html"))
    assert [run["run"] for run in found] == [str(folder) for folder in folders]
    (loss, *_) = json.loads(texts.scripts["eventtrain-charts"])
    assert [trace["name"] for trace in loss["traces"]] == [
        f"{folder}: {name}" for folder in folders for name in ("train_loss", "valid_loss")
    ]
    page = (tmp_path / "both.html").read_text()
    (row,) = re.findall(r'<tr class="differs"><td>opt.lr</td>.*?</tr>', page)
    assert "<td>0.1</td><td>0.2</td>" in row


def test_runs_of_one_name_are_told_apart() -> None:
    names = [run.name for run in named_apart([RunFacts("a"), RunFacts("b"), RunFacts("a")])]
    assert names == ["a (1)", "b", "a (3)"]


# The live run


def test_a_runner_reports_what_its_callbacks_know(learner: Learner, tmp_path: Path) -> None:
    run = Runner(
        [AvgStatsCallback(report=None), EventLog(), History(batches=True), Timing(),
         Checkpoint(tmp_path / "ck")]
    )  # fmt: skip
    with run.bus.profile() as profile:
        run.fit(2, learner)
    path = run.report(tmp_path / "report.html", profile=profile)
    assert path == tmp_path / "report.html"
    (found,) = read(path)[1]
    assert found["missing"] == []
    assert [row["loss"] for row in found["batches"]] == [
        row["loss"] for row in run.history_table.to_dicts("batches")
    ]
    assert [row["valid_loss"] for row in found["rows"]] == [
        row["valid_loss"]
        for row in run.result.history  # type: ignore[union-attr]
    ]
    assert len(found["checkpoints"]) == 2
    assert found["outcome"] == "completed"


def test_a_runner_without_callbacks_reports_how_it_ended_and_what_lacks(
    learner: Learner, tmp_path: Path
) -> None:
    run = Runner()
    run.on("after_loss", lambda run: run.token.cancel("fit", "enough"), name="ender")
    run.fit(2, learner)
    (found,) = read(run.report(tmp_path / "report.html"))[1]
    assert (found["outcome"], found["who"], found["why"]) == (
        "cancelled", "ender, in after_loss", "enough"
    )  # fmt: skip
    assert len(found["missing"]) == 6
    assert not any("losses and metrics" in what for what in found["missing"])


def test_a_run_that_failed_is_reported(learner: Learner, tmp_path: Path) -> None:
    learner.loss_func = lambda out, yb: 1 / 0
    run = Runner()
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    (found,) = read(run.report(tmp_path / "report.html"))[1]
    assert (found["outcome"], found["why"]) == ("failed", "ZeroDivisionError: division by zero")


@pytest.mark.parametrize("logs", [True, False])
def test_a_report_in_the_midst_of_a_fit_says_that_it_goes_on(
    logs: bool, make_learner: Any, tmp_path: Path
) -> None:
    def report(run: Runner) -> None:
        run.report(tmp_path / "report.html")

    log = [EventLog(tmp_path / "events.jsonl", flush_every=10_000)] if logs else []
    run = Runner([AvgStatsCallback(report=None), *log])
    run.on("after_row", report, priority=-90)
    result = run.fit(2, make_learner())
    plain = Runner(AvgStatsCallback(report=None)).fit(2, make_learner())
    assert result.history[1]["valid_loss"] == plain.history[1]["valid_loss"]
    (found,) = read(tmp_path / "report.html")[1]
    assert found["outcome"] == "running"
    assert [row["epoch"] for row in found["rows"]] == [0, 1]


def test_a_runner_that_never_ran_is_reported(tmp_path: Path) -> None:
    (found,) = read(Runner(History()).report(tmp_path / "report.html"))[1]
    assert (found["outcome"], found["rows"]) == ("unknown", [])


# The file


@pytest.mark.parametrize("name", ["report.json", "events.jsonl", "report"])
def test_a_file_that_is_no_page_is_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=r"name it \.html"):
        Runner().report(tmp_path / name)
    assert (tmp_path / name).read_text() == "precious"


def test_a_page_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'needs plotly: pip install "eventtrain\[report\]"'
    ):
        Runner().report(path)
    assert path.read_text() == "before"


def test_the_page_asks_no_network_for_anything(page: tuple[Path, Runner]) -> None:
    texts, _ = read(page[0])
    assert [attributes for _, attributes in texts.tags if {"src", "href"} & attributes.keys()] == []
    assert {tag for tag, _ in texts.tags} <= {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "h1",
            "h2",
            "h3",
            "div",
            "p",
            "section",
        ),
        *("table", "thead", "tbody", "tr", "th", "td", "ul", "li", "details", "summary", "pre"),
        "script",
    }
    style = page[0].read_text().partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_has_a_size_that_can_be_sent(page: tuple[Path, Runner]) -> None:
    assert page[0].stat().st_size < 3_000_000


# What others wrote is no markup


@pytest.fixture
def hostile(make_learner: Any, tmp_path: Path) -> Path:
    """The page of a run in which all names and words are markup."""
    run = fit(tmp_path, make_learner(), 1)
    run.on("after_loss", lambda run: run.token.cancel("batch", MARKUP), name=MARKUP, once=True)
    run.on("after_train", lambda run: run.history[-1].update({MARKUP: 1.0, "text": MARKUP}))

    @run.on("begin_validate", name=f"last {MARKUP}")
    def fail(run: Runner) -> None:
        raise ValueError(MARKUP)

    with pytest.raises(ValueError):
        run.fit(1, make_learner())
    facts = facts_of_folder(tmp_path)
    facts.name = facts.notes[:] = MARKUP
    facts.notes, facts.missing, facts.sources = [MARKUP], [MARKUP], [MARKUP]
    return write_report([facts], tmp_path / "hostile.html")


def test_nothing_that_others_wrote_is_markup(hostile: Path) -> None:
    texts, (run,) = read(hostile)
    assert not [tag for tag, _ in texts.tags if tag in ("img", "b")]
    assert "<img" not in hostile.read_text()
    assert run["why"] == f"ValueError: {MARKUP}"
    assert any(MARKUP in text for text in texts.shown)
    charts = json.loads(texts.scripts["eventtrain-charts"])
    assert not any("<" in trace["name"] for chart in charts for trace in chart["traces"])


def test_texts_are_escaped() -> None:
    assert element("p", "<&\"'\x1b") == "<p>&lt;&amp;&quot;&#x27; </p>"
    assert "<td>&lt;b&gt;</td>" in table(["<th>"], [["<b>"]])
    assert "<th>&lt;th&gt;</th>" in table(["<th>"], [["<b>"]])


# In a browser


def in_chromium(page: Path, profile: Path, *options: str) -> str:
    """What a browser makes of a page, once its script has run."""
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={profile}", "--virtual-time-budget=20000",
            "--host-resolver-rules=MAP * ~NOTFOUND", *options, "--dump-dom", page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )  # fmt: skip
    return done.stdout


def heights_of(dom: str) -> list[list[float]]:
    """The heights of the points of each line that is drawn; a legend draws some, too."""
    shapes = re.findall(r'<path class="js-line" d="M([\d.,L]+)"', dom)
    return [[-float(point.split(",")[1]) for point in shape.split("L")] for shape in shapes]


def share(values: list[float]) -> float:
    """How far the middle of three values is on the way from the first to the last."""
    return (values[1] - values[0]) / (values[2] - values[0])


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.slow
def test_a_browser_without_a_network_draws_every_chart(
    page: tuple[Path, Runner], tmp_path: Path
) -> None:
    dom = in_chromium(page[0], tmp_path / "profile")
    assert 'data-drawn="6"' in dom
    assert dom.count('class="plot js-plotly-plot"') == 6
    _, (run,) = read(page[0])
    drawn = [share(each) for each in heights_of(dom) if len(each) == 3 and each[2] != each[0]]
    for name in ("train_loss", "valid_loss"):
        wanted = share([row[name] for row in run["rows"]])
        assert any(abs(each - wanted) < 0.01 for each in drawn), (name, wanted, drawn)
    assert f"<td>{run['attempts'][0]['kind']}</td>" in dom


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.slow
def test_a_browser_runs_nothing_that_others_wrote(hostile: Path, tmp_path: Path) -> None:
    dom = in_chromium(hostile, tmp_path / "profile")
    assert "data-drawn" in dom
    assert "<title>owned" not in dom
    assert "<img" not in dom
