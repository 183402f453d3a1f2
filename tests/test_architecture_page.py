"""docs/architecture.md: what it names is there, and its journeys miss no step."""

from __future__ import annotations

import ast
import gc
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache, cached_property, reduce
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from test_architecture import FLOORS, module_of

from eventtrain import EVENTS, CancellationToken, DataBunch, Learner, Runner, TensorLoader
from eventtrain.bus.dispatch import source
from eventtrain.callbacks import Checkpoint

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eventtrain"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FENCED = dict(re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL))
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
PLACEHOLDER = "NAME"
Walk = Callable[[], object]


def code_in(text: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def names_on_the_page() -> Iterator[str]:
    """What is named with its file, and what a class is named with that had its file before."""
    for section in re.split(r"^## ", PROSE, flags=re.MULTILINE):
        homes: dict[str, str] = {}
        for code in code_in(section):
            named = re.fullmatch(r"([\w/]+\.py): (([A-Z]\w+)?[\w.]*)", code)
            short = re.fullmatch(r"([A-Z]\w*[a-z]\w*)\.\w+", code)
            if named is not None:
                homes[named[3]] = named[1]
                yield code
            elif short is not None:
                yield f"{homes.get(short[1], 'nowhere.py')}: {code}"


CODE = set(code_in(PROSE))
NAMED = sorted(set(names_on_the_page()))
PATHS = sorted(text for text in CODE if re.fullmatch(r"[\w/]+(\.py|\.md|\.txt|/)", text))


def file_of(path: str) -> Path:
    return ROOT / path if (ROOT / path).exists() else PACKAGE / path


@cache
def names_in(file: Path) -> frozenset[str]:
    """Functions, classes with their methods and fields, and assigned names of a file."""
    found: set[str] = set()

    def assigned(node: ast.AST) -> list[ast.expr]:
        if isinstance(node, ast.Assign):
            return node.targets
        return [node.target] if isinstance(node, ast.AnnAssign) else []

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            found.update(prefix + t.id for t in assigned(node) if isinstance(t, ast.Name))
            if isinstance(node, ast.FunctionDef):
                found.add(prefix + node.name)
            elif isinstance(node, ast.ClassDef):
                found.add(prefix + node.name)
                collect(node.body, f"{prefix}{node.name}.")

    collect(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


@pytest.mark.parametrize("named", NAMED)
def test_every_name_on_the_page_is_in_its_file(named: str) -> None:
    path, _, name = named.partition(": ")
    assert file_of(path).exists(), "no class of that name had its file before in this section"
    assert name in names_in(file_of(path))


@pytest.mark.parametrize("path", PATHS)
def test_every_path_on_the_page_is_there(path: str) -> None:
    pattern = path.replace(PLACEHOLDER, "*")
    assert any(list(folder.glob(pattern)) for folder in (ROOT, PACKAGE))


def test_every_word_of_code_on_the_page_is_one_of_the_code() -> None:
    folders = (PACKAGE, ROOT / "benchmarks", ROOT / "tests")
    texts = [path.read_text(encoding="utf-8") for f in folders for path in f.rglob("*.py")]
    known = {word for text in texts for word in re.findall(r"\w+", text)}
    paths = {word for path in PATHS for word in re.findall(r"\w+", path)}
    files = {word for name in NAMED for word in re.findall(r"\w+", name.partition(": ")[0])}
    used = {word for text in CODE for word in re.findall(r"[a-zA-Z_]\w*", text)}
    words = {word for word in used if PLACEHOLDER not in word}
    assert sorted(words - known - paths - files) == []


def test_the_picture_has_the_floors_of_the_house_from_the_top_down() -> None:
    drawn: list[str] = []
    package = ""
    for line in FENCED["text"].splitlines():
        names = re.split(r" {2,}", line.strip())[0].split(", ")
        if line.startswith(" "):
            drawn += [f"{package}.{name}" for name in names]
        else:
            drawn += names
            package = names[-1]
    assert drawn == FLOORS[::-1]


def test_every_floor_of_the_picture_has_a_line_about_it() -> None:
    lines = [re.split(r" {2,}", line.strip()) for line in FENCED["text"].splitlines()]
    assert [names for names, *about in lines if len(about) != 1] == []


def test_the_generated_code_on_the_page_is_what_is_generated() -> None:
    assert FENCED["python"] == source("checkpoint", 2)


def test_every_step_of_the_lists_has_a_test_that_tells_when_it_was_forgotten() -> None:
    lists = PROSE.partition("\n## To add")[2]
    steps = [" ".join(step.split()) for step in re.split(r"^\d+\. ", lists, flags=re.MULTILINE)]
    assert len(steps) > 20
    assert [step for step in steps[1:] if not re.search(r"`tests/[\w/]+\.py: test_", step)] == []


# Journeys: each is walked, and the calls that lead from one file into another are noted


def subscribing(learn: Learner, folder: Path) -> Walk:
    def walk() -> None:
        run = Runner()
        run.on("after_loss", lambda run: None, name="other")
        run.on("after_loss", lambda run: None, name="own", after="other", every=2)
        emit, _ = run.bus.bind(run, CancellationToken())
        emit.after_loss()

    return walk


def training(learn: Learner, folder: Path) -> Walk:
    run = Runner()
    return lambda: run.fit(1, learn)


def cancelling(learn: Learner, folder: Path) -> Walk:
    run = Runner()
    run.on("after_loss", lambda run: run.token.cancel("epoch", "why"))
    for event in ("after_batch", "after_cancel_epoch", "after_epoch"):
        run.on(event, lambda run: None)
    return lambda: run.fit(1, learn)


def going_on(learn: Learner, folder: Path) -> Walk:
    begun, resumed = (Runner(Checkpoint(folder, every_steps=1)) for _ in range(2))
    begun.on("after_step", lambda run: run.token.cancel("fit") if run.steps > 2 else None)

    def walk() -> None:
        begun.fit(2, learn)
        resumed.fit(2, learn, resume="auto")

    return walk


JOURNEYS = {1: subscribing, 2: training, 3: cancelling, 4: going_on}


@pytest.fixture
def learn() -> Learner:
    torch.manual_seed(0)
    x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
    model = torch.nn.Linear(3, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    data = DataBunch(TensorLoader(x, y, bs=4), TensorLoader(x, y, bs=4))
    return Learner(model, opt, torch.nn.functional.cross_entropy, data)


def calls_between_files(walk: Walk) -> set[str]:
    """Return what is called by another file of the package, as ``path: name``."""
    found: set[str] = set()

    def note(frame: FrameType, what: str, _: Any) -> None:
        caller = frame.f_back
        file = frame.f_code.co_filename
        if what != "call" or caller is None or not file.startswith(str(PACKAGE)):
            return
        if caller.f_code.co_filename != file:
            path = Path(file).relative_to(PACKAGE).as_posix()
            found.add(f"{path}: {frame.f_code.co_qualname}")

    gc.collect()
    gc.disable()  # what earlier tests have left is not to be cleared away in the middle of the walk
    sys.setprofile(note)
    try:
        walk()
    finally:
        sys.setprofile(None)
        gc.enable()
    return found


def is_step(call: str) -> bool:
    """Whether a reader has to be told: not of arguments, properties, and what has a named owner."""
    path, _, name = call.partition(": ")
    parts = name.split(".")
    if path == "arguments.py" or "<" in name or any(part.startswith("_") for part in parts):
        return False
    owner = reduce(getattr, parts[:-1], import_module(f"eventtrain.{module_of(file_of(path))}"))
    if isinstance(inspect.getattr_static(owner, parts[-1]), (property, cached_property)):
        return False
    return parts[-1] not in {event.name for event in EVENTS}


@pytest.mark.parametrize("number", JOURNEYS)
def test_no_call_of_a_journey_leads_into_another_file_that_the_page_does_not_name(
    number: int, learn: Learner, tmp_path: Path
) -> None:
    found = calls_between_files(JOURNEYS[number](learn, tmp_path))
    assert len(found) > 10
    assert sorted(call for call in found if is_step(call) and call not in NAMED) == []


def test_a_step_that_the_page_did_not_name_would_be_noticed() -> None:
    found = calls_between_files(lambda: Runner().bus.explain())
    assert "bus/event_bus.py: EventBus.explain" in filter(is_step, found)
