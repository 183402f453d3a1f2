"""Plugins: found through entry points, loaded whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eventtrain import Callback, EventBus, Learner, PluginError, Runner
from eventtrain.plugins import installed_plugins, requested_plugins

Install = Callable[..., str]

CALLBACK = """
    from eventtrain import Callback

    class Demo(Callback):
        def __init__(self, every=1):
            self.every = every
            self.calls = 0

        def after_step(self, run):
            self.calls += 1
"""
REGISTER = """
    def Demo(bus, priority=0):
        bus.declare("after_demo")

        def step(run):
            bus.emit("after_demo", run)

        bus.on("after_step", step, priority=priority, name="demo_step")
"""


def failing(code: str) -> str:
    """Have the handler of a plugin fail."""
    return code.replace("self.calls += 1", "1 / 0").replace('bus.emit("after_demo", run)', "1 / 0")


BROKEN = {
    "import error": ("import nonsense_that_is_nowhere", "ModuleNotFoundError"),
    "exit at import": ("raise SystemExit(3)", "SystemExit"),
    "no such object": ("x = 1", "AttributeError"),
    "wrong object": ("Demo = 3", "neither a Callback class"),
    "factory of nothing": ("def Demo(): return None", "its factory returned None"),
    "factory of nonsense": ("def Demo(): return [1]", r"its factory returned \[1\]"),
    "failure halfway": (
        """
        def Demo(bus):
            bus.declare("after_demo")
            bus.on("after_step", print)
            bus.signal("after_loss").connect(print, weak=False)
            bus.signal("begin_fit").is_muted = True
            raise RuntimeError("halfway")
        """,
        "RuntimeError: halfway",
    ),
    "an event that exists": ("def Demo(bus): bus.declare('after_loss')", "declares event 'after_"),
    "a name that is taken": (
        """
        from eventtrain import Callback
        class TrainEvalCallback(Callback):
            def after_step(self): ...
        Demo = TrainEvalCallback
        """,
        "two callbacks are called 'train_eval'",
    ),
    "a name of the runner's own": (
        """
        from eventtrain import Callback
        class Loss(Callback):
            def after_step(self): ...
        Demo = Loss
        """,
        "'loss' is an attribute of the runner's own",
    ),
    "another plugin API": (
        """
        from eventtrain import Callback
        eventtrain_plugin_api = 2
        class Demo(Callback): ...
        """,
        "plugin API 2, and this eventtrain has 1",
    ),
}


def test_an_installed_plugin_does_not_change_a_run_unasked(install: Install) -> None:
    install("raise RuntimeError('imported')")
    run = Runner()
    assert run.plugins == []
    assert [callback.name for callback in run.cbs] == ["train_eval"]


def test_installed_plugins_are_listed_without_importing_them(install: Install) -> None:
    install("raise RuntimeError('imported')")
    (plugin,) = [plugin for plugin in installed_plugins() if plugin.name == "demo"]
    assert plugin.distribution == "demo-package 1.2"


def test_a_callback_class_becomes_a_callback_of_the_run(install: Install, learner: Learner) -> None:
    install(CALLBACK)
    run = Runner(plugins=["demo"])
    run.fit(1, learner)
    assert run.demo.calls == 3


def test_options_reach_the_class(install: Install) -> None:
    install(CALLBACK)
    assert Runner(plugins={"demo": {"every": 100}}).demo.every == 100


def test_a_factory_may_return_several_callbacks(install: Install) -> None:
    install("""
        from eventtrain import Callback
        class One(Callback): ...
        class Two(Callback):
            def __init__(self, size): self.size = size
        def Demo(size=1): return One(), Two(size)
    """)
    run = Runner(plugins={"demo": {"size": 5}})
    assert isinstance(run.one, Callback)
    assert run.two.size == 5


def test_a_register_function_gets_the_bus_and_the_options(install: Install, learner) -> None:
    install(REGISTER)
    run = Runner(plugins={"demo": {"priority": 7}})
    seen: list[int] = []
    run.on("after_demo", lambda run: seen.append(run.steps))
    run.fit(1, learner)
    assert seen == [1, 2, 3]
    assert run.bus.explain("after_step")[0].priority == 7


def test_what_register_subscribes_hears_its_own_runner_only(install: Install) -> None:
    install("def Demo(bus, seen=None): bus.on('after_fit', seen.append)")
    bus, seen = EventBus(), []
    Runner(bus=bus)
    run = Runner(bus=bus, plugins={"demo": {"seen": seen}})
    bus.emit("after_fit", "someone else")
    bus.emit("after_fit", run)
    assert seen == [run]


def test_explain_names_plugin_and_distribution(install: Install) -> None:
    install(CALLBACK)
    run = Runner(plugins=["demo"])
    (row,) = run.bus.explain("after_step")
    assert "demo of demo-package 1.2" in row.source


@pytest.mark.parametrize("code", [CALLBACK, REGISTER], ids=["class", "register"])
def test_the_note_on_an_exception_names_the_plugin(
    code: str, install: Install, learner: Learner
) -> None:
    install(
        code.replace("self.calls += 1", "1 / 0").replace('bus.emit("after_demo", run)', "1 / 0")
    )
    with pytest.raises(ZeroDivisionError) as caught:
        Runner(plugins=["demo"]).fit(1, learner)
    assert "plugin demo of demo-package 1.2" in caught.value.__notes__[0]


@pytest.mark.parametrize("code", [CALLBACK, REGISTER], ids=["class", "register"])
def test_a_failing_plugin_can_be_kept_from_ending_the_run(
    code: str, install: Install, learner: Learner, caplog: Any
) -> None:
    install(
        code.replace("self.calls += 1", "1 / 0").replace('bus.emit("after_demo", run)', "1 / 0")
    )
    result = Runner(plugins=["demo"], plugin_errors="disable").fit(1, learner)
    assert result.outcome == "completed"
    (record,) = [record for record in caplog.records if record.name == "eventtrain"]
    assert "demo of demo-package 1.2" in record.getMessage()


def test_a_connected_receiver_that_fails_is_disconnected_too(install, learner, caplog) -> None:
    install("""
        def fail(run): 1 / 0
        def Demo(bus): bus.signal("after_step").connect(fail, weak=False)
    """)
    run = Runner(plugins=["demo"], plugin_errors="disable")
    assert run.fit(1, learner).outcome == "completed"
    assert len([r for r in caplog.records if r.name == "eventtrain"]) == 1


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_one_error_that_names_it_and_the_cause(
    kind: str, install: Install
) -> None:
    code, cause = BROKEN[kind]
    module = install(code)
    with pytest.raises(PluginError, match=cause) as caught:
        Runner(plugins=["demo"])
    error = caught.value
    for part in ("'demo'", "demo-package 1.2", f"demo = {module}:Demo"):
        assert part in str(error)
    assert (error.plugin, error.distribution, error.version) == ("demo", "demo-package", "1.2")
    assert error.__cause__ is not None


def state(bus: EventBus) -> list[Any]:
    return [
        (name, signal.is_muted, [(row.handler, row.source) for row in bus.explain(name)])
        for name, signal in bus.items()
    ]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_leaves_the_bus_as_it_was(kind: str, install: Install) -> None:
    install(BROKEN[kind][0])
    bus = EventBus()
    subscription = bus.on("after_step", lambda run: None, name="mine")
    run = Runner(bus=bus)
    before = state(bus)
    with pytest.raises(PluginError):
        Runner(bus=bus, plugins=["demo"])
    assert state(bus) == before
    subscription.disconnect()
    assert not [row for row in bus.explain("after_step") if row.handler == "mine"]
    del run


@pytest.mark.parametrize("kind", BROKEN)
def test_a_run_can_go_on_without_a_broken_plugin(kind: str, install: Install, learner) -> None:
    install(BROKEN[kind][0])
    with pytest.warns(RuntimeWarning, match="demo-package 1.2"):
        run = Runner(plugins=["demo"], plugins_on_error="warn")
    assert run.plugins == []
    assert run.fit(1, learner).outcome == "completed"


def test_a_handler_that_a_broken_plugin_took_away_is_back(install: Install) -> None:
    install("""
        def Demo(bus):
            for signal in bus.values():
                signal._clear_state()
            raise RuntimeError("destructive")
    """)
    bus, seen = EventBus(), []
    subscription = bus.on("after_fit", seen.append, every=2)
    bus.emit("after_fit", 1)
    with pytest.raises(PluginError, match="destructive"):
        Runner(bus=bus, plugins=["demo"])
    bus.emit("after_fit", 2)
    assert seen == [2]
    assert subscription.connected


def test_one_broken_plugin_does_not_take_the_others_along(install: Install) -> None:
    install(CALLBACK, name="good", dist="good-package")
    install("raise RuntimeError('no')", name="bad", dist="bad-package")
    with pytest.warns(RuntimeWarning, match="bad-package"):
        run = Runner(plugins=["bad", "good"], plugins_on_error="warn")
    assert [plugin.name for plugin in run.plugins] == ["good"]


def test_a_plugin_that_nobody_offers_is_an_error_with_a_hint(install: Install) -> None:
    install(CALLBACK)
    with pytest.raises(PluginError, match=r"no installed package.*Did you mean 'demo'"):
        Runner(plugins=["dmeo"])


def test_two_packages_that_offer_one_name_are_an_error(install: Install) -> None:
    install(CALLBACK, dist="first-package")
    install(CALLBACK, dist="second-package")
    with pytest.raises(PluginError, match=r"(first|second)-package 1\.2 and .*both offer"):
        Runner(plugins=["demo"])


def test_options_that_the_plugin_does_not_take_are_an_error(install: Install) -> None:
    install(CALLBACK)
    with pytest.raises(PluginError, match="it has no option 'evry'"):
        Runner(plugins={"demo": {"evry": 1}})


def test_options_that_are_no_mapping_are_an_error() -> None:
    with pytest.raises(TypeError, match="options of plugin 'demo' must be a mapping"):
        Runner(plugins={"demo": 100})  # type: ignore[dict-item]


@pytest.mark.parametrize("option", ["plugins_on_error", "plugin_errors"])
def test_a_senseless_error_policy_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        Runner(**{option: "ignore"})


@pytest.mark.parametrize(
    ("requested", "add", "disable", "expected"),
    [
        (None, "", "", []),
        ((), "", "", []),
        ("a", "", "", ["a"]),
        ("a, b", "", "", ["a", "b"]),
        (["a", "b"], "", "", ["a", "b"]),
        (["a"], "b,c", "", ["a", "b", "c"]),
        (None, " b , c ", "", ["b", "c"]),
        (["a", "b"], "", "a", ["b"]),
        (["a"], "a", "a", []),
        (["a", "b"], "c", "all", []),
    ],
)
def test_the_environment_adds_and_disables(
    requested: Any, add: str, disable: str, expected: list[str]
) -> None:
    environ = {"EVENTTRAIN_PLUGINS": add, "EVENTTRAIN_DISABLE_PLUGINS": disable}
    assert list(requested_plugins(requested, environ)) == expected


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_all_means_every_installed_plugin(
    where: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(CALLBACK, name="first", dist="first-package")
    install(REGISTER, name="second", dist="second-package")
    others = {plugin.name for plugin in installed_plugins()} - {"first", "second"}
    monkeypatch.setenv("EVENTTRAIN_DISABLE_PLUGINS", ",".join(others))
    if where == "environment":
        monkeypatch.setenv("EVENTTRAIN_PLUGINS", "all")
    run = Runner(plugins="all" if where == "argument" else ())
    assert [plugin.name for plugin in run.plugins] == ["first", "second"]


def test_the_environment_adds_a_plugin_to_a_run(install: Install, monkeypatch) -> None:
    install(CALLBACK)
    monkeypatch.setenv("EVENTTRAIN_PLUGINS", "demo")
    assert isinstance(Runner().demo, Callback)
