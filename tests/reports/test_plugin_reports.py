"""What is said about installed plugins, found out without a run."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from eventtrain.reports.plugin_reports import PluginReport, report_plugins

Install = Callable[..., str]

TWO_EVENTS = """
    from eventtrain import Callback, handler

    class Demo(Callback):
        priority = -80

        def __init__(self, path="x.txt", every=10): ...

        @handler(every=10)
        def after_step(self): ...

        def after_fit(self): ...
"""
BROKEN = {
    "import nonsense_that_is_nowhere": "ModuleNotFoundError: No module named 'nonsense_that_is_now",
    "raise SystemExit(3)": "SystemExit: 3",
    "class Own(BaseException): ...\nraise Own('why')": "Own: why",
    "x = 1": "AttributeError: module ",
    "Demo = 42": "TypeError: it resolves to 42",
    "def Demo(bus): bus.declare('after_step')": "ValueError: the bus declares event 'after_step'",
    "def Demo(bus): bus.on('after_step', print); 1 / 0": "ZeroDivisionError: division by zero",
    "eventtrain_plugin_api = 2\ndef Demo(bus): ...": "RuntimeError: it is written for plugin API 2",
}


def report() -> PluginReport:
    (found,) = [each for each in report_plugins() if each.name == "demo"]
    return found


def test_a_callback_class_is_reported_with_package_and_options(install: Install) -> None:
    module = install(TWO_EVENTS)
    found = report()
    assert (found.status, found.reason, found.kind) == ("ok", None, "Callback class")
    assert (found.distribution, found.version) == ("demo-package", "1.2")
    assert found.entry_point == f"{module}:Demo"
    assert found.options == ("path='x.txt'", "every=10")


def test_its_handlers_are_reported_in_order_with_priority_and_filter(install: Install) -> None:
    install(TWO_EVENTS)
    rows = [(row.event, row.priority, row.filter) for row in report().handlers]
    assert rows == [("after_step", -80, "every=10"), ("after_fit", -80, "")]


def test_a_register_function_is_reported_without_its_bus(install: Install) -> None:
    install("def Demo(bus, size=1): bus.on('begin_fit', print, priority=3)")
    found = report()
    assert (found.kind, found.options) == ("register function", ("size=1",))
    assert [row.priority for row in found.handlers] == [3]


def test_a_factory_is_called_for_its_handlers(install: Install) -> None:
    install(TWO_EVENTS + "\n    Made = Demo\n    def Demo(): return [Made()]")
    found = report()
    assert found.kind == "factory"
    assert len(found.handlers) == 2


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_one_is_reported_with_the_reason_and_no_handlers(
    code: str, install: Install
) -> None:
    install(code)
    found = report()
    assert found.status == "broken"
    assert found.reason is not None and found.reason.startswith(BROKEN[code])
    assert len(found.handlers) == 0


def test_a_broken_one_does_not_keep_others_from_being_reported(install: Install) -> None:
    install("1 / 0", name="bad", dist="bad-package")
    install(TWO_EVENTS)
    assert report().status == "ok"


def test_one_that_cannot_do_without_options_is_not_broken(install: Install) -> None:
    install(TWO_EVENTS.replace("path=", "size, path="))
    found = report()
    assert (found.status, found.options[0]) == ("needs options", "size")
    assert found.reason == "Runner(plugins={'demo': {'size': ...}})"


def test_one_that_refers_to_handlers_of_others_is_not_broken(install: Install) -> None:
    install("def Demo(bus): bus.on('after_loss', print, after='avg_stats')")
    found = report()
    assert found.status == "needs handlers"
    assert "'avg_stats'" in str(found.reason)


def test_a_contradiction_between_its_own_handlers_is_broken(install: Install) -> None:
    install("""
        def Demo(bus):
            bus.on("after_loss", print, name="a")
            bus.on("after_loss", print, name="b", before="a")
            bus.on("after_loss", print, name="c", before="b", after="a")
    """)
    found = report()
    assert found.status == "broken"
    assert "OrderError" in str(found.reason)


def test_two_packages_that_offer_one_name_are_both_broken(install: Install) -> None:
    install(TWO_EVENTS)
    install(TWO_EVENTS, dist="other-package")
    found = [each for each in report_plugins() if each.name == "demo"]
    assert [each.status for each in found] == ["broken", "broken"]
    assert all("both offer that name" in str(each.reason) for each in found)


def test_what_plugins_print_goes_to_standard_error(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("print('noise')\ndef Demo(bus): print('more')")
    report()
    assert capsys.readouterr() == ("", "noise\nmore\n")


def test_a_report_becomes_plain_data(install: Install) -> None:
    install(TWO_EVENTS)
    data = json.loads(json.dumps(report().to_dict()))
    assert data["status"] == "ok"
    assert [row["event"] for row in data["handlers"]] == ["after_step", "after_fit"]
