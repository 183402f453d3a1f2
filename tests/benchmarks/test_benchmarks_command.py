"""The command line of the benchmarks: misuse, comparison, tables, figures, exit codes."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.command import main
from benchmarks.comparison import compared
from benchmarks.measure import Group, Suite, Target
from benchmarks.records import SCHEMA, as_json, new_record
from benchmarks.tables import BEGIN, END

ROOT = Path(__file__).resolve().parents[2]
FACTS = {
    "date": "2026-01-02T03:04:05+00:00", "eventtrain": "1", "commit": "abc", "python": "CPython",
    "torch": "2", "libraries": {"blinker": "1", "psygnal": None}, "cpu": "a CPU", "cpus": 2,
    "load": 0.5, "system": "Linux", "device": None, "torch_threads": 1, "gc": "off", "seed": 0,
    "quick": False,
}  # fmt: skip
needs_matplotlib = pytest.mark.skipif(
    find_spec("matplotlib") is None, reason="needs matplotlib: '.[bench]' brings it"
)


def record(
    hand: float = 1e-6, ours: float = 2e-6, limit: float = 3, unit: str = "us"
) -> dict[str, Any]:
    """Return a record of one suite, in which nothing varies by more than a tenth."""
    spread = (0.95, 1.0, 1.05)
    rounds = {"hand": [hand] * 3, "ours": [ours * factor for factor in spread]}
    parameters = {name: {"handlers": 0, "loop": "Runner", "device": "cpu"} for name in rounds}
    group = Group("a batch", unit, rounds, parameters)
    target = Target("ours over hand", ours / hand, limit)
    made = new_record(copy.deepcopy(FACTS))
    made["suites"] = {"loop": as_json(Suite([group], [target], ["a note"]))}
    made["complete"] = True
    return made


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file with a record."""
    path = tmp_path / "old.json"
    path.write_text(json.dumps(record()), encoding="utf-8")
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    return main([str(a) for a in arguments], program="bench"), *capsys.readouterr()


# Misuse


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the complaint about these arguments: one line or two, and nothing measured."""
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert 1 <= len(err.splitlines()) <= 2, err
    return err


def test_an_unknown_suite_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "emti" in refused(capsys, "emti")


def test_a_record_to_compare_with_must_exist(capsys: Any, tmp_path: Path) -> None:
    assert "there is no file" in refused(capsys, "emit", "--compare", tmp_path / "none.json")


def test_a_record_to_compare_with_must_be_json(capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_bytes(b"\xff{")
    assert "is not JSON" in refused(capsys, "--compare", tmp_path / "old.json")


@pytest.mark.parametrize("content", ["[]", "{}", '{"schema": 1}', '{"schema": 99, "suites": {}}'])
def test_a_record_of_another_schema_is_refused(content: str, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(content)
    assert f"reads schema {SCHEMA}" in refused(capsys, "--compare", tmp_path / "old.json")


def test_a_record_that_lacks_its_suites_is_refused(capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"schema": SCHEMA}))
    assert "no whole record" in refused(capsys, "--compare", tmp_path / "old.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["suites"], []),
        (["suites", "loop"], {"seconds": 1}),
        (["suites", "loop", "groups"], {}),
        (["suites", "loop", "groups", 0, "unit"], "parsec"),
        (["suites", "loop", "groups", 0, "baseline"], "nobody"),
        (["suites", "loop", "groups", 0, "variants", "ours", "time"], None),
        (["suites", "loop", "groups", 0, "variants", "ours", "seconds"], []),
        (["suites", "loop", "targets", 0], "met"),
        (["environment"], {}),
        (["environment", "libraries"], None),
        (["complete"], "yes"),
    ],
)
def test_a_damaged_record_is_refused(
    path: list[Any], value: Any, capsys: Any, tmp_path: Path
) -> None:
    damaged = record()
    *above, last = path
    place: Any = damaged
    for key in above:
        place = place[key]
    place[last] = value
    (tmp_path / "old.json").write_text(json.dumps(damaged))
    assert "no whole record" in refused(capsys, "--from", tmp_path / "old.json")


@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_a_file_in_no_folder_is_refused_first(option: str, capsys: Any, tmp_path: Path) -> None:
    assert "folder that exists" in refused(capsys, option, tmp_path / "none" / "file")


def test_figures_without_matplotlib_name_the_extra(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.arguments.find_spec", lambda *_: None)
    monkeypatch.setattr("benchmarks.arguments.is_there", lambda _: True)
    assert "eventtrain[bench]" in refused(capsys, "emit", "--plot", tmp_path)


def test_figures_are_not_drawn_into_a_file(capsys: Any, saved: Path) -> None:
    assert "is no folder" in refused(capsys, "--from", saved, "--plot", saved)


@pytest.mark.parametrize("name", ["nonsense", "mps", "cuda:77"])
def test_a_device_that_cannot_be_used_is_refused(name: str, capsys: Any) -> None:
    assert f"--device {name}" in refused(capsys, "gpu", "--device", name)


def test_reading_and_measuring_exclude_each_other(capsys: Any, saved: Path) -> None:
    assert "--from measures nothing" in refused(capsys, "emit", "--from", saved)


@pytest.mark.parametrize("option", [("--device", "cpu"), ("--seed", "7"), ("--threads", "2")])
def test_what_only_measuring_heeds_is_refused_where_nothing_is_measured(
    option: tuple[str, str], capsys: Any, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert option[0] in refused(capsys, "--from", saved, *option)


def test_one_file_for_the_record_and_the_tables_is_refused(capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    err = refused(capsys, "emit", "--json", tmp_path / "file", "--markdown", tmp_path / "link")
    assert "one file" in err


@pytest.mark.parametrize(
    "text",
    [
        f"text\n{BEGIN}\n",
        f"text\n{BEGIN}",
        f"text\n{END}\n",
        f"{END}\ntext\n{BEGIN}\n",
        f"{BEGIN}\n{BEGIN}\n{END}\n",
        f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n",
        f"Tables go between {BEGIN}\nand {END}\n, and this is text\n",
    ],
)
def test_a_file_without_one_pair_of_marks_is_left_alone(
    text: str, capsys: Any, saved: Path, tmp_path: Path
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert END in refused(capsys, "--from", saved, "--markdown", readme)
    assert readme.read_text() == text


def test_a_file_for_tables_must_be_text(capsys: Any, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff")
    assert "UTF-8" in refused(capsys, "--from", saved, "--markdown", tmp_path / "README.md")
    assert (tmp_path / "README.md").read_bytes() == b"\xff"


@pytest.mark.parametrize("option", ["--json", "--markdown"])
def test_a_file_that_cannot_be_written_is_refused_first(
    option: str, capsys: Any, tmp_path: Path
) -> None:
    assert f"{option} {tmp_path}" in refused(capsys, "emit", option, tmp_path / ("x" * 300))


@needs_matplotlib
def test_a_folder_that_cannot_be_made_is_refused_first(capsys: Any, tmp_path: Path) -> None:
    assert "--plot" in refused(capsys, "emit", "--plot", tmp_path / ("x" * 300))


def test_asking_whether_a_file_can_be_written_changes_none(capsys: Any, tmp_path: Path) -> None:
    old, new, link = (tmp_path / name for name in ("old.json", "new.json", "link.json"))
    old.write_text("kept")
    link.symlink_to(new)
    for path in (old, new, link):
        refused(capsys, "emit", "--json", path, "--device", "nonsense")
    assert old.read_text() == "kept"
    assert link.is_symlink()
    assert not new.exists()


@pytest.mark.parametrize("count", ["0", "2147483647"])
def test_threads_that_no_cpu_is_there_for_are_refused(count: str, capsys: Any) -> None:
    assert "--threads" in refused(capsys, "--threads", count)


@pytest.mark.parametrize("seed", ["-1", str(2**64)])
def test_a_seed_that_torch_does_not_take_is_refused(seed: str, capsys: Any) -> None:
    assert "--seed" in refused(capsys, "--seed", seed)


def test_an_unknown_option_is_misuse_too(capsys: Any) -> None:
    code, _, err = call(capsys, "--frobnicate")
    assert code == 2
    assert "--frobnicate" in err


def test_a_suite_that_is_not_installed_is_refused(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules["benchmarks"].SUITES, "elsewhere", "a question")
    assert "not part of this installation" in refused(capsys, "elsewhere")


# Exit codes


def test_help_succeeds_and_names_the_exit_codes(capsys: Any) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert "130 after Ctrl-C" in out


@pytest.mark.parametrize(("limit", "code"), [(3, 0), (1, 1)])
def test_check_fails_when_a_target_is_missed(
    limit: float, code: int, capsys: Any, tmp_path: Path
) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps(record(limit=limit)))
    assert call(capsys, "--from", path, "--check")[0] == code


def test_check_names_the_targets_that_are_missed(capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps(record(limit=1)))
    _, out, err = call(capsys, "--from", path, "--compare", path, "--check")
    assert "ours over hand" not in out
    assert err == "bench: missed: ours over hand: 2 x (<= 1 x)\n"


def test_a_missed_target_alone_is_no_failure(capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps(record(limit=1)))
    assert call(capsys, "--from", path)[0] == 0


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_keeps_what_was_found(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    # Not quick: it is interrupted in its second suite, long before that ends.
    code = (
        "import sys, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import benchmarks.emit as emit\n"
        "from benchmarks.measure import Suite\n"
        "emit.run = lambda options: Suite(notes=['one is done'])\n"
        "from benchmarks.command import main\n"
        f"sys.exit(main(['emit', 'loop', '--json', {str(file)!r}], 'bench'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("=== loop"):
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "interrupted; finished: emit" in stderr
    found = json.loads(file.read_text())
    assert not found["complete"]
    assert found["suites"]["emit"]["notes"] == ["one is done"]


@pytest.mark.parametrize("place", ["environment.environment", "figures.draw"])
def test_ctrl_c_before_and_after_the_suites_ends_without_a_traceback(
    place: str, capsys: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr(f"benchmarks.{place}", interrupt)
    monkeypatch.setattr("benchmarks.arguments.find_spec", lambda *_: "matplotlib is there")
    arguments = ["emit"] if place.startswith("env") else ["--from", saved, "--plot", tmp_path]
    code, _, err = call(capsys, *arguments)
    assert code == 130
    assert err == ""


@pytest.fixture
def emit(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Suite]], None]:
    """Replace the emit suite, as any real one takes seconds."""
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)  # other tests go on after it
    return lambda run: monkeypatch.setattr("benchmarks.emit.run", run)


def fail(options: Any) -> Suite:
    raise RuntimeError("no luck")


def test_a_suite_that_fails_leaves_what_the_others_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, emit: Any
) -> None:
    emit(fail)
    monkeypatch.setattr("benchmarks.scale.run", lambda options: Suite(notes=["one is done"]))
    file = tmp_path / "found.json"
    code, out, err = call(capsys, "emit", "scale", "--json", file, "--check")
    assert code == 3
    assert "one is done" in out
    assert "Traceback" in err
    assert err.splitlines()[-1] == "bench: emit failed: RuntimeError: no luck"
    found = json.loads(file.read_text())
    assert not found["complete"]
    assert list(found["suites"]) == ["scale"]


def test_a_suite_that_is_named_twice_runs_once(capsys: Any, emit: Any) -> None:
    ran: list[Any] = []
    emit(lambda options: ran.append(options) or Suite())
    assert call(capsys, "emit", "emit")[0] == 0
    assert len(ran) == 1


def test_plugins_of_the_environment_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, emit: Any
) -> None:
    names = ("EVENTTRAIN_PLUGINS", "EVENTTRAIN_DISABLE_PLUGINS")
    for name in names:
        monkeypatch.setenv(name, "some")
    seen: list[bool] = []
    emit(lambda options: seen.extend(name in os.environ for name in names) or Suite())
    code, _, err = call(capsys, "emit")
    assert code == 0
    assert seen == [False, False]
    assert all(f"{name} is ignored" in err for name in names)


# What moved


def test_nothing_has_moved_between_a_record_and_itself() -> None:
    assert "nothing has moved" in compared(record(), record())


def test_a_ratio_beyond_its_spread_has_moved() -> None:
    text = compared(record(), record(ours=3e-6))
    assert "slower  loop | a batch | ours: 2 (1.9 .. 2.1) -> 3 (2.85 .. 3.15) x" in text
    assert "faster  loop | a batch | ours" in compared(record(ours=3e-6), record())


def test_a_ratio_that_moved_with_the_version_says_so() -> None:
    both = record(), record(ours=3e-6)
    for made, version in zip(both, ("1.2", "1.3"), strict=True):
        made["suites"]["loop"]["groups"][0]["variants"]["ours"]["parameters"] = {"version": version}
    assert "3 (2.85 .. 3.15) x, version 1.2 -> 1.3" in compared(*both)


def test_a_ratio_within_its_spread_has_not_moved() -> None:
    assert "nothing has moved" in compared(record(), record(ours=2.05e-6))


def test_a_baseline_is_compared_by_its_time() -> None:
    assert "slower  loop | a batch | hand: 1 (1 .. 1) -> 2 (2 .. 2) us" in compared(
        record(), record(hand=2e-6, ours=4e-6)
    )


def test_a_baseline_is_compared_across_units() -> None:
    text = compared(record(hand=9e-4, ours=1.8e-3), record(hand=2e-3, ours=4e-3, unit="ms"))
    assert "slower  loop | a batch | hand: 0.9 (0.9 .. 0.9) -> 2 (2 .. 2) ms" in text
    assert "nothing has moved" in compared(record(), record(unit="ns"))


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("seed", 5, "seed was 0, is 5"),
        ("libraries", {"blinker": "2", "psygnal": None}, "blinker was 1, is 2"),
    ],
)
def test_times_of_another_seed_or_library_are_not_compared(key: str, value: Any, line: str) -> None:
    other = record(hand=2e-6, ours=4e-6)
    other["environment"][key] = value
    text = compared(record(), other)
    assert line in text.splitlines()
    assert "nothing has moved" in text


def test_what_is_not_finite_is_counted_and_not_compared() -> None:
    other = record()
    variant = other["suites"]["loop"]["groups"][0]["variants"]["ours"]
    variant["ratio"]["median"] = float("nan")
    for pair in ((record(), other), (other, record())):
        text = compared(*pair)
        assert "nothing has moved by more than its spread, of 1 figures" in text
        assert "1 figures are not compared, as they are not finite" in text


def test_times_of_another_machine_are_not_compared() -> None:
    other = record(hand=2e-6, ours=4e-6)
    other["environment"]["cpu"] = "another CPU"
    text = compared(record(), other)
    assert "cpu was a CPU, is another CPU" in text
    assert "nothing has moved" in text


def test_a_target_that_is_missed_now_is_named() -> None:
    assert "target is missed now: ours over hand" in compared(record(), record(limit=1))
    assert "target is met now: ours over hand" in compared(record(limit=1), record())


def test_figures_of_one_record_only_are_counted() -> None:
    less = record()
    less["suites"] = {}
    assert "2 figures are in the old record only (loop)" in compared(record(), less)
    assert "2 figures are in this only (loop)" in compared(less, record())


def test_the_comparison_is_printed(capsys: Any, saved: Path) -> None:
    code, out, _ = call(capsys, "--from", saved, "--compare", saved)
    assert code == 0
    assert f"since {saved}\nnothing has moved" in out


# Tables and figures


def test_what_was_read_is_printed_where_nothing_else_is_asked_for(capsys: Any, saved: Path) -> None:
    code, out, _ = call(capsys, "--from", saved)
    assert code == 0
    assert "=== loop" in out
    assert "PASS  ours over hand: 2 x (<= 3 x)" in out


def test_tables_replace_those_between_the_marks(capsys: Any, saved: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        assert call(capsys, "--from", saved, "--markdown", readme)[0] == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "| ours over hand | 2 x | at most 3 x | PASS |" in text
    assert "| ours | 2 | 1.9 .. 2.1 | 2 |" in text


def test_a_sentence_about_the_marks_is_no_mark(capsys: Any, saved: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"tables follow {BEGIN}\n  {BEGIN}\nold\n{END}")
    for _ in range(2):
        assert call(capsys, "--from", saved, "--markdown", readme)[0] == 0
    text = readme.read_text()
    assert text.startswith(f"tables follow {BEGIN}\n{BEGIN}\n\nTaken")
    assert text.endswith(f"\n{END}\n")
    assert "old" not in text


def test_tables_make_a_file_of_their_own(capsys: Any, saved: Path, tmp_path: Path) -> None:
    call(capsys, "--from", saved, "--markdown", tmp_path / "new.md")
    text = (tmp_path / "new.md").read_text()
    assert "Taken 2026-01-02 at commit abc" in text
    assert "- a note" in text


@needs_matplotlib
def test_figures_are_drawn_of_what_was_measured(capsys: Any, saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "figures"
    code, out, _ = call(capsys, "--from", saved, "--plot", folder)
    assert code == 0
    assert [path.name for path in folder.iterdir()] == ["overhead.png"]
    assert f"figure: {folder / 'overhead.png'}" in out
    assert (folder / "overhead.png").read_bytes().startswith(b"\x89PNG")


@needs_matplotlib
def test_both_figures_come_from_the_suites_that_they_show(tmp_path: Path) -> None:
    from benchmarks import emit
    from benchmarks.figures import draw
    from benchmarks.measure import Options

    made = record()
    made["suites"]["emit"] = as_json(Suite([emit.handlers(n, Options(quick=True)) for n in (1, 3)]))
    assert [path.name for path in draw(made, tmp_path)] == ["handlers.png", "overhead.png"]


@needs_matplotlib
@pytest.mark.parametrize(
    ("stray", "arrow"), [(1e-7, "\N{LEFTWARDS ARROW}"), (30.0, "\N{RIGHTWARDS ARROW}")]
)
def test_a_step_unlike_all_others_is_told_at_the_edge_and_stretches_no_axis(
    stray: float, arrow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    from benchmarks import figures

    def point(step: float, added: float) -> dict[str, Any]:
        spread = {"min": 0.9 * added, "median": added, "max": 1.1 * added}
        return {"step": step, "handlers": 0, "device": "cpu", **spread}

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    points = [point(1e-4, 8.0), point(1e-3, 2.0), point(1e-2, 0.5), point(stray, 4300.0)]
    figures._draw_overhead(points, tmp_path / "overhead.png", "made-up numbers")
    (axes,) = drawn[0].axes
    left, right = axes.get_xlim()
    assert 0.01 < left < 0.1 and 10 < right < 100  # ms
    assert axes.get_ylim()[1] < 100  # per cent
    told = [text.get_text() for text in axes.texts if "4.3e+03 %" in text.get_text()]
    assert len(told) == 1 and arrow in told[0]


@needs_matplotlib
def test_ranks_that_agree_have_a_figure(tmp_path: Path) -> None:
    from benchmarks.figures import draw
    from benchmarks.measure import Group

    made = record()
    ranks = {f"{n} ranks": {"ranks": n} for n in (2, 4)}
    answer = Group("answer", "ms", {"2 ranks": [0.001], "4 ranks": [0.002]}, ranks)
    made["suites"] = {"agreement": as_json(Suite([answer]))}
    assert [path.name for path in draw(made, tmp_path)] == ["ranks.png"]


@pytest.mark.parametrize(("device", "named"), [("a GPU", "a GPU"), (None, "no GPU")])
def test_figures_name_the_cpu_and_the_gpu(device: str | None, named: str) -> None:
    from benchmarks.figures import _origin

    made = record()
    made["environment"]["device"] = device
    assert _origin(made).startswith(f"a CPU, {named};")


# eventtrain bench


def test_eventtrain_bench_takes_the_same_options() -> None:
    pytest.importorskip("click", reason="the command line needs click")
    texts = []
    for command in (["-m", "benchmarks"], ["-m", "eventtrain", "bench"]):
        done = subprocess.run(
            [sys.executable, *command, "--help"],
            cwd=ROOT, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout.partition("\n\n")[2])
    assert texts[0] == texts[1]


def test_eventtrain_bench_hands_the_exit_code_on() -> None:
    pytest.importorskip("click", reason="the command line needs click")
    done = subprocess.run(
        [sys.executable, "-m", "eventtrain", "bench", "emti"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("eventtrain bench: no suite emti")


def test_importing_eventtrain_leaves_the_benchmarks_alone() -> None:
    program = "import sys, eventtrain; print([n for n in sys.modules if 'benchmarks' in n])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
