"""Plugins: found through entry points, loaded whole or not at all."""

from __future__ import annotations

import asyncio
import gc
import textwrap
import threading
from collections.abc import Callable
from threading import Thread, Timer
from typing import Any

import pytest

from eventtrain import Callback, CancellationToken, EventBus, Learner, PluginError, Runner
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
    "a function that yields": ("def Demo(bus): yield bus.on('after_step', print)", "without yield"),
    "a function to be awaited": (
        "async def Demo(bus): bus.on('after_step', print)",
        "async and aw",
    ),
    "a function that returns a coroutine": (
        """
        async def later(bus): bus.on('after_step', print)
        def Demo(bus): return later(bus)
        """,
        r"Demo\(bus\) returned a coroutine, which nobody runs: subscribe the handlers in",
    ),
    "a function that returns a generator": (
        "def Demo(bus): return (bus.on(event, print) for event in bus)",
        r"Demo\(bus\) returned a generator",
    ),
    "a factory to be awaited": ("async def Demo(): return []", "a coroutine function"),
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


def test_a_factory_may_yield_its_callbacks(install: Install) -> None:
    install("""
        from eventtrain import Callback
        class One(Callback): ...
        class Two(Callback): ...
        def Demo():
            yield One()
            yield Two()
    """)
    assert [callback.name for callback in Runner(plugins=["demo"]).cbs[1:]] == ["one", "two"]


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


LATER = {
    "bus.on": "run.bus.on('after_step', fail)",
    "bus.on, as a decorator": "run.bus.on('after_step')(fail)",
    "run.on": "run.on('after_step', fail)",
    "signal.connect": "run.bus['after_step'].connect(fail, weak=False)",
    "signal.connect_via": "run.bus['after_step'].connect_via(run)(fail)",
    "bus.attach": "run.bus.attach([Handler('after_step', fail, Options())])",
    "signal.attach": "run.bus['after_step'].attach(Handler('after_step', fail, Options()))",
    "signal.connected_to": "run.kept = run.bus['after_step'].connected_to(fail); "
    "run.kept.__enter__()",
    "deep in other calls": "list(map(partial(run.bus.on, 'after_step'), [fail]))",
    "in a nested emission": "run.bus.on('after_demo', on_demo); run.bus.emit('after_demo', run)",
    "in a nested send": "run.bus.on('after_demo', on_demo); run.bus['after_demo'].send(run)",
    "among many": "[run.on('after_demo', id, name=str(i)) for i in range(130)]; "
    "run.on('after_demo', on_demo); run.bus.emit('after_demo', run)",
}
"""What a handler of a plugin does to subscribe one that fails."""
SUBSCRIBING_LATER = """
    from functools import partial
    from eventtrain import Callback
    from eventtrain.bus.handlers import Handler, Options

    def fail(run):
        1 / 0

    def on_demo(run):
        run.on("after_step", fail)

    def subscribe(run):
        LATER
"""
AS_REGISTER = """
    def Demo(bus):
        bus.declare("after_demo")
        bus.on("WHEN", subscribe, once=True)
"""
AS_CALLBACK = """
    from eventtrain.callback import handler

    class Demo(Callback):
        def set_runner(self, run):
            super().set_runner(run)
            if "after_demo" not in run.bus:
                run.bus.declare("after_demo")

        @handler(once=True)
        def WHEN(self, run):
            subscribe(run)
"""


def subscribing_later(way: str, form: str, event: str = "begin_fit") -> str:
    code = SUBSCRIBING_LATER.replace("LATER", LATER[way]) + form
    return code.replace("WHEN", event)


@pytest.mark.parametrize("form", [AS_REGISTER, AS_CALLBACK], ids=["register", "class"])
@pytest.mark.parametrize("way", LATER)
class TestSubscribingLater:
    def test_it_bears_the_plugins_label(self, way: str, form: str, install, learner) -> None:
        install(subscribing_later(way, form))
        run = Runner(plugins=["demo"])
        run.on("begin_epoch", lambda run: run.token.cancel("fit"))
        run.fit(1, learner)
        (row,) = run.bus.explain("after_step")
        assert "demo of demo-package 1.2" in row.source

    def test_it_fails_as_plugins_may(self, way: str, form: str, install, learner, caplog) -> None:
        install(subscribing_later(way, form))
        run = Runner(plugins=["demo"], plugin_errors="disable")
        assert run.fit(1, learner).outcome == "completed"
        (record,) = [record for record in caplog.records if record.name == "eventtrain"]
        assert "demo of demo-package 1.2" in record.getMessage()

    def test_it_hears_its_own_runner_alone(self, way: str, form: str, install, learner) -> None:
        install(subscribing_later(way, form))
        bus = EventBus()
        run, other = Runner(bus=bus, plugins=["demo"]), Runner(bus=bus)
        run.on("begin_epoch", lambda run: run.token.cancel("fit"))
        run.fit(1, learner)
        assert len(bus["after_step"].handlers_for(run)) == 1
        assert other.fit(1, learner).outcome == "completed"


@pytest.mark.parametrize("event", ["begin_batch", "after_batch", "after_epoch"])
def test_what_a_plugin_subscribes_in_any_kind_of_event_is_its_own(event, install, learner) -> None:
    install(subscribing_later("bus.on", AS_REGISTER, event))
    run = Runner(plugins=["demo"], plugin_errors="disable")
    assert run.fit(2, learner).outcome == "completed"


def test_what_a_later_handler_subscribes_is_the_plugins_too(install, learner) -> None:
    install("""
        def Demo(bus):
            def subscribe(run, depth=0):
                def again(run):
                    subscribe(run, depth + 1)
                bus.on("begin_step", again if depth < 3 else print, once=True, name=f"h{depth}")
            bus.on("begin_fit", subscribe)
    """)
    run = Runner(plugins=["demo"])
    seen = []
    run.on("after_epoch", lambda run: seen.extend(run.bus.explain("begin_step")))
    run.fit(1, learner)
    assert [row.handler for row in seen] == ["h3"]
    assert "demo of demo-package" in seen[0].source


def test_a_handler_of_the_users_that_a_plugins_event_calls_subscribes_for_the_user(
    install: Install, learner: Learner
) -> None:
    install(REGISTER)
    run = Runner(plugins=["demo"], plugin_errors="disable")

    @run.on("after_demo", once=True)
    def mine(run: Any) -> None:
        run.bus.on("after_epoch", lambda run: 1 / 0, name="mine_too")

    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    (row,) = run.bus.explain("after_epoch")
    assert "demo" not in row.source


def test_a_runner_that_a_plugin_makes_for_itself_is_as_any_runner(install, learner) -> None:
    install("""
        from eventtrain import Runner
        made = []
        def Demo(bus):
            bus.on("begin_fit", lambda run: made.append(Runner()))
            bus.on("begin_fit", lambda run: made[0].bus.on("after_fit", print))
            bus.on("begin_fit", lambda run: run.token.cancel("fit"))
    """)
    run = Runner(plugins=["demo"], plugin_errors="disable")
    run.fit(1, learner)
    (made,) = __import__(run.plugins[0].entry.module).made
    handlers = [handler for signal in made.bus.values() for handler in signal.handlers]
    assert {(handler.plugin, handler.options.on_error) for handler in handlers} == {(None, "raise")}
    assert len(made.bus["after_fit"].handlers_for("anyone")) == 1


def test_what_a_callback_subscribes_when_it_gets_its_runner_is_the_plugins(install) -> None:
    install("""
        from eventtrain import Callback
        class Demo(Callback):
            def set_runner(self, run):
                super().set_runner(run)
                run.bus.on("after_epoch", print)
    """)
    bus = EventBus()
    run = Runner(bus=bus, plugins=["demo"])
    (row,) = bus.explain("after_epoch")
    assert "demo of demo-package" in row.source
    assert not bus["after_epoch"].handlers_for("someone else")
    del run


def test_what_another_thread_subscribes_while_a_plugin_loads_is_not_the_plugins(
    install: Install,
) -> None:
    install("""
        def Demo(bus, meanwhile):
            meanwhile()
            bus.on("after_fit", print, name="own")
    """)
    bus = EventBus()

    def meanwhile() -> None:
        thread = threading.Thread(target=lambda: bus.on("after_fit", print, name="user"))
        thread.start()
        thread.join(10)

    run = Runner(bus=bus, plugins={"demo": {"meanwhile": meanwhile}})
    sources = {row.handler: row.source for row in bus.explain("after_fit")}
    assert "demo" in sources["own"]
    assert "demo" not in sources["user"]
    del run


ELSEWHERE = {
    "a closure that is called from outside": "later()",
    "a thread": "thread = Thread(target=later); thread.start(); thread.join(10)",
    "a timer": "timer = Timer(0, later); timer.start(); timer.join(10)",
    "a hook of the model": "run.model.register_forward_hook(lambda *_: later())",
    "a task": "import asyncio\nasync def task(): later()\nasyncio.run(task())",
}
FROM_A_CLOSURE = """
    def fail(run): 1 / 0
    made = []
    def Demo(bus, with_sender=False):
        done = []
        def later(run=None):
            if not done:
                done.append(1)
                options = {"sender": run} if with_sender else {}
                bus.on("after_step", fail, **options)
        made.append(later)
"""


@pytest.mark.parametrize("way", ELSEWHERE)
def test_what_the_code_of_a_plugin_subscribes_anywhere_is_its_own(
    way: str, install: Install, learner: Learner, caplog
) -> None:
    module = install(FROM_A_CLOSURE)
    run = Runner(plugins=["demo"], plugin_errors="disable")
    later = __import__(module).made[0]

    @run.on("begin_epoch")
    def call(run: Any) -> None:
        exec(ELSEWHERE[way], {"run": run, "later": later, "Thread": Thread, "Timer": Timer})

    assert run.fit(1, learner).outcome == "completed"
    (record,) = [record for record in caplog.records if record.name == "eventtrain"]
    assert "plugin demo of demo-package 1.2" in record.getMessage()


def test_a_plugin_that_several_runs_have_says_for_which_it_subscribes(install: Install) -> None:
    module = install(FROM_A_CLOSURE)
    bus = EventBus()
    runs = [Runner(bus=bus, plugins={"demo": {"with_sender": w}}) for w in (False, True)]
    unclear, clear = __import__(module).made
    with pytest.raises(ValueError, match=r"demo-package 1.2 was loaded for several.*sender=run"):
        unclear()
    clear(runs[0])
    (row,) = bus.explain("after_step")
    assert "demo of demo-package" in row.source
    assert len(bus["after_step"].handlers_for(runs[0])) == 1
    del runs[1]
    gc.collect()
    unclear()
    assert {row.sender for row in bus.explain("after_step")} == {"Runner"}


def test_a_bus_forgets_the_plugins_of_runs_that_are_gone(install: Install) -> None:
    install(FROM_A_CLOSURE)
    bus = EventBus()
    for _ in range(5):
        run = Runner(bus=bus, plugins=["demo"])
        gc.collect()
    assert len(bus.home.providers) <= 2
    assert run.plugins


def test_a_plugin_whose_load_failed_owns_nothing(install: Install) -> None:
    module = install(FROM_A_CLOSURE)
    install("def Demo(bus): 1 / 0", name="bad", dist="bad-package")
    bus = EventBus()
    with pytest.raises(PluginError) as caught:
        Runner(bus=bus, plugins=["demo", "bad"])
    __import__(module).made[0]()
    (row,) = bus.explain("after_step")
    assert "demo-package" not in row.source
    assert caught.value.plugin == "bad"


NEVER_RUN = {
    "coroutine function": "async def lazy(run): ...",
    "generator function": "def lazy(run): yield",
    "async generator function": "async def lazy(run): yield",
    "object with such a method": "class Lazy:\n    async def __call__(self, run): ...\n"
    "lazy = Lazy()",
    "partial of one": "from functools import partial\n"
    "async def waiting(run): ...\nlazy = partial(waiting)",
    "function of two": "def lazy(run, other): ...",
}
ATTACHED = {
    "connect": "bus['after_step'].connect(lazy, weak=False)",
    "connect_via": "bus['after_step'].connect_via('x')(lazy)",
    "on": "bus.on('after_step', lazy)",
    "attach": "bus.attach([Handler('after_step', lazy, Options())])",
}
HANDLERS = "from eventtrain.bus.handlers import Handler, Options\n"


@pytest.mark.parametrize("way", ATTACHED)
@pytest.mark.parametrize("kind", NEVER_RUN)
class TestWhatNoLoopCanCall:
    def test_it_is_refused_while_the_plugin_loads(self, kind: str, way: str, install) -> None:
        install(f"{HANDLERS}{NEVER_RUN[kind]}\ndef Demo(bus): {ATTACHED[way]}")
        bus = EventBus()
        with pytest.raises(PluginError, match=r"demo-package 1.2.*for event 'after_step'"):
            Runner(bus=bus, plugins=["demo"])
        assert not list(bus.explain())

    def test_later_it_is_a_failure_of_the_plugins(
        self, kind: str, way: str, install, learner, caplog
    ) -> None:
        later = f"def Demo(bus):\n    def demo(run): {ATTACHED[way]}\n    bus.on('begin_fit', demo)"
        install(f"{HANDLERS}{NEVER_RUN[kind]}\n{later}")
        run = Runner(plugins=["demo"], plugin_errors="disable")
        assert run.fit(1, learner).outcome == "completed"
        (record,) = [record for record in caplog.records if record.name == "eventtrain"]
        assert "demo of demo-package 1.2" in record.getMessage()


@pytest.mark.parametrize("call", ["emit", "send"])
@pytest.mark.parametrize("kind", ["coroutine function", "function of two"])
def test_on_an_event_of_its_own_it_is_the_plugins_failure_when_it_is_called(
    kind: str, call: str, install: Install, learner: Learner, caplog
) -> None:
    install(
        NEVER_RUN[kind] + "\ndef Demo(bus): bus.declare('after_demo').connect(lazy, weak=False)"
    )
    run = Runner(plugins=["demo"], plugin_errors="disable")
    run.on("after_batch", lambda run: getattr(run.bus["after_demo"], call)(run) and None)
    assert run.fit(1, learner).outcome == "completed"
    (record,) = [record for record in caplog.records if record.name == "eventtrain"]
    assert "demo of demo-package 1.2" in record.getMessage()
    assert not run.bus["after_demo"].receivers


def test_what_a_plugin_awaits_itself_fails_as_plugins_may(install: Install) -> None:
    install("""
        async def lazy(run): 1 / 0
        def Demo(bus): bus.declare("after_demo").connect(lazy, weak=False)
    """)
    run = Runner(plugins=["demo"], plugin_errors="warn")
    with pytest.warns(RuntimeWarning, match=r"plugin demo of demo-package 1.2\) failed: ZeroDiv"):
        pairs = asyncio.run(run.bus["after_demo"].send_async(run))
    assert [value for _, value in pairs] == [None]
    with pytest.warns(RuntimeWarning, match=r"plugin demo of demo-package 1.2\) failed: ZeroDiv"):
        run.bus["after_demo"].send(run, _async_wrapper=lambda f: lambda r: asyncio.run(f(r)))


OUTSIDE = {
    "SystemExit": "raise SystemExit(3)",
    "GeneratorExit": "raise GeneratorExit",
    "CancelledError": "import asyncio; raise asyncio.CancelledError",
    "Skipped": "import pytest; pytest.skip('no', allow_module_level=True)",
    "Exit": "import pytest; pytest.exit('no')",
    "Mine": "class Mine(BaseException): ...\nraise Mine('why')",
    "BaseExceptionGroup": "raise BaseExceptionGroup('several', [GeneratorExit()])",
    "StopIteration": "raise StopIteration",
    "Silent": "class Silent(BaseException):\n    def __str__(self): 1 / 0\nraise Silent",
}


@pytest.mark.parametrize("where", ["import", "register", "factory"])
@pytest.mark.parametrize("kind", OUTSIDE)
def test_no_exception_of_a_plugins_own_passes_raw(kind: str, where: str, install) -> None:
    code = OUTSIDE[kind]
    if where != "import":
        head = "def Demo(bus):" if where == "register" else "def Demo():"
        subscribing = "\n    bus.on('after_fit', print)" if where == "register" else ""
        code = head + subscribing + "\n" + textwrap.indent(code, "    ")
    install(code)
    bus = EventBus()
    with pytest.raises(PluginError, match=rf"could not be loaded: {kind}") as caught:
        Runner(bus=bus, plugins=["demo"])
    assert type(caught.value.__cause__).__name__ == kind
    assert not list(bus.explain())


@pytest.mark.parametrize(
    "code", ["raise KeyboardInterrupt", "raise BaseExceptionGroup('both', [KeyboardInterrupt()])"]
)
def test_ctrl_c_while_a_plugin_loads_passes_and_leaves_the_bus_as_it_was(code, install) -> None:
    install("def Demo(bus):\n    bus.on('after_fit', print)\n    " + code)
    bus = EventBus()
    with pytest.raises(BaseException) as caught:  # the kind is looked at below
        Runner(bus=bus, plugins=["demo"], plugins_on_error="warn")
    assert isinstance(caught.value, (KeyboardInterrupt, BaseExceptionGroup))
    assert not list(bus.explain())


def test_a_cancellation_that_is_delivered_while_a_plugin_loads_passes(install, learner) -> None:
    install("def Demo(bus, check): check()")
    run = Runner()

    @run.on("begin_epoch")
    def load(run: Any) -> None:
        run.token.cancel("fit", "enough")
        Runner(plugins={"demo": {"check": run.token.check}})

    assert run.fit(1, learner).reason == "enough"


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


UNDONE = {
    "a replaced signal": "bus['after_step'] = Signal(name='after_step')",
    "a replaced signal with a handler": "bus['after_step'] = Signal(); bus.on('after_step', print)",
    "no signal": "bus['after_step'] = 5",
    "a deleted signal": "del bus['after_step']",
    "all deleted": "bus.clear()",
    "popped": "bus.pop('after_step')",
    "deleted and declared": "del bus['after_step']; bus.declare('after_step')",
    "another order": "bus['begin_fit'] = bus.pop('begin_fit')",
    "an event": "bus.declare('after_demo')",
    "a scope": "bus.declare_scope('demo', inside='fit', points=['demo_point'])",
    "a phase": "bus.declare_scope('demo', inside='epoch', is_phase=True)",
    "disconnected": "bus['after_step'].disconnect(next(bus['after_step'].receivers_for(ANY)))",
    "cleared": "bus['after_step']._clear_state()",
    "connected": "bus['after_step'].connect(print, weak=False)",
    "connected for a sender": "bus['after_step'].connect(print, sender='x', weak=False)",
    "muted": "bus['after_step'].is_muted = True",
    "muted by a block": "bus.kept = bus['after_step'].muted(); bus.kept.__enter__()",
    "a watcher": "bus['after_step'].receiver_connected.connect(print, weak=False)",
    "all of it": "bus.declare_scope('demo'); bus.pop('after_fit'); bus['after_step'] = Signal()",
}


def whole_state(bus: EventBus) -> Any:
    signals = [
        (
            name,
            id(signal),
            signal.is_muted,
            [(id(handler), handler.plugin, handler.key) for handler in signal.handlers],
            sorted(map(str, signal._by_sender.items())),
            {name for name in vars(signal) if name.startswith("receiver_")},
        )
        for name, signal in bus.items()
    ]
    return signals, dict(bus.vocabulary.scopes)


@pytest.mark.parametrize("kind", UNDONE)
def test_nothing_of_what_a_failed_load_did_remains(kind: str, install, learner) -> None:
    head = "from blinker import ANY\nfrom eventtrain import Signal\ndef Demo(bus):\n    "
    install(f"{head}{UNDONE[kind]}\n    raise RuntimeError('halfway')\n")
    bus, seen = EventBus(), []
    subscription = bus.on("after_step", lambda run: seen.append("mine"), name="mine")
    run = Runner(bus=bus)
    emit, scope = bus.bind(run, CancellationToken())
    known = set(vars(emit)), set(vars(scope))
    before = whole_state(bus)
    with pytest.raises(PluginError, match="halfway"):
        Runner(bus=bus, plugins=["demo"])
    assert whole_state(bus) == before
    assert (set(vars(emit)), set(vars(scope))) == known
    emit.after_step()
    run.fit(1, learner)
    assert seen == ["mine"] * 4
    subscription.disconnect()
    run.fit(1, learner)
    assert seen == ["mine"] * 4


def test_a_weak_receiver_that_died_during_a_failed_load_does_not_come_back(install) -> None:
    install("def Demo(bus, drop):\n    drop()\n    raise RuntimeError('halfway')")
    bus, held = EventBus(), [lambda run: None, lambda run: None]
    bus["after_fit"].connect(held[0])
    bus.on("after_fit", held[1], weak=True)
    with pytest.raises(PluginError, match="halfway"):
        Runner(bus=bus, plugins={"demo": {"drop": held.clear}})
    assert not bus["after_fit"].receivers


def test_a_sender_that_died_during_a_failed_load_leaves_no_handler(install) -> None:
    install("def Demo(bus, drop):\n    drop()\n    raise RuntimeError('halfway')")
    bus = EventBus()
    held = [Runner(bus=bus)]
    bus.on("after_fit", print, sender=held[0])
    with pytest.raises(PluginError, match="halfway"):
        Runner(bus=bus, plugins={"demo": {"drop": held.clear}})
    gc.collect()
    assert not list(bus.explain())


def test_what_other_threads_did_during_a_failed_load_stays(install: Install) -> None:
    install("def Demo(bus, meanwhile):\n    meanwhile()\n    raise RuntimeError('halfway')")
    bus, seen = EventBus(), []
    leaving = bus.on("after_fit", seen.append, name="leaving")
    bus.on("after_fit", seen.append, name="staying")
    block = bus["after_loss"].muted()
    block.__enter__()

    def other() -> None:
        leaving.disconnect()
        block.__exit__(None, None, None)
        bus.on("after_fit", print, name="coming", sender="x")
        bus["after_fit"].connect(pytest.fail, weak=False, sender="y")
        bus.declare("after_other")
        bus.declare_scope("elsewhere", inside="epoch", is_phase=True)

    def meanwhile() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(10)

    with pytest.raises(PluginError, match="halfway"):
        Runner(bus=bus, plugins={"demo": {"meanwhile": meanwhile}})
    names = [handler.name for handler in bus["after_fit"].handlers]
    assert names == ["staying", "coming", "_Fail"]
    assert [handler.name for handler in bus["after_fit"].handlers_for("x")] == names[:2]
    assert not bus["after_loss"].is_muted
    assert "after_other" in bus
    assert "elsewhere" in bus.vocabulary.scopes["batch"].parents


def test_a_once_handler_that_a_failed_load_called_does_not_run_again(install: Install) -> None:
    install("def Demo(bus):\n    bus.emit('after_fit', 1)\n    raise RuntimeError('halfway')")
    bus, seen = EventBus(), []
    subscription = bus.on(["after_fit", "begin_fit"], seen.append, once=True)
    with pytest.raises(PluginError, match="halfway"):
        Runner(bus=bus, plugins=["demo"])
    bus.emit("after_fit", 2)
    assert seen == [1]
    assert not subscription.connected


def test_a_callback_that_refuses_its_runner_leaves_none_of_its_factorys_there(install) -> None:
    install("""
        from eventtrain import Callback
        class First(Callback):
            def after_epoch(self): ...
        class Second(Callback):
            def set_runner(self, run):
                raise RuntimeError("not this one")
        def Demo(): return [First(), Second()]
    """)
    with pytest.warns(RuntimeWarning, match="not this one"):
        run = Runner(plugins=["demo"], plugins_on_error="warn")
    assert [callback.name for callback in run.cbs] == ["train_eval"]
    assert not hasattr(run, "first")
    assert not hasattr(run, "second")
    assert not run.bus["after_epoch"].handlers


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
