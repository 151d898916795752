"""A plugin that fails again and again is switched off; one caller alone cannot have that done."""

import pytest

from lensd_api.errors import FailedPrecondition, NotFound
from lensd_api.hookspecs import AnalysisRecord
from lensd_server.crashing import CrashingAnalyzers, WritingAnalyzers
from lensd_server.engine.events import RegisteredAnalyzer
from lensd_server.plugins import AnalyzerRegistry, LoadedPlugin, PluginRecord, PluginStatus
from lensd_server.settings import PluginSettings


class Clock:
    """Stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry() -> AnalyzerRegistry:
    plugin = LoadedPlugin(PluginRecord("p", "lensd-p", "1", PluginStatus.ACTIVE))
    answers = {
        name: RegisteredAnalyzer(object(), name, "lensd-p", "1")  # type: ignore[arg-type]
        for name in ("bad", "good")
    }
    return AnalyzerRegistry([plugin], answers)


def watch(registry: AnalyzerRegistry, clock: Clock, *, known: bool = False) -> CrashingAnalyzers:
    settings = PluginSettings(max_failures=3, failure_window_s=60)
    return CrashingAnalyzers(registry, settings, callers_are_known=known, clock=clock)


def end(observer: CrashingAnalyzers, outcome: str, *, analyzer: str = "bad", caller: str = "a") -> None:
    observer.finished(AnalysisRecord("r", analyzer, "m", outcome=outcome, caller=caller))


def status(registry: AnalyzerRegistry) -> PluginStatus:
    return registry.plugins()[0].status


def test_so_many_failures_in_a_row_switch_it_off_and_say_why(
    registry: AnalyzerRegistry, clock: Clock
) -> None:
    observer = watch(registry, clock)
    for _ in range(2):
        end(observer, "plugin_error")
    assert status(registry) is PluginStatus.ACTIVE
    end(observer, "plugin_error")
    assert status(registry) is PluginStatus.QUARANTINED
    assert "bad failed 3 times in a row within 60 s" in registry.plugins()[0].problem
    with pytest.raises(FailedPrecondition, match="switched off"):
        registry.resolve("good")
    end(observer, "plugin_error")  # one that was running still


def test_a_success_and_time_let_earlier_failures_be_forgotten(
    registry: AnalyzerRegistry, clock: Clock
) -> None:
    observer = watch(registry, clock)
    for outcome in ("plugin_error", "plugin_error", "ok", "plugin_error", "plugin_error"):
        end(observer, outcome)
    clock.now += 61
    end(observer, "plugin_error")
    end(observer, "ok", analyzer="good")  # another analyzer's success is none of it
    end(observer, "plugin_error")
    assert status(registry) is PluginStatus.ACTIVE
    end(observer, "plugin_error")
    assert status(registry) is PluginStatus.QUARANTINED


@pytest.mark.parametrize(
    "outcome", ["client_error", "rejected", "cancelled", "deadline", "device_oom", "internal"]
)
def test_what_is_not_the_plugins_fault_does_not_count(
    registry: AnalyzerRegistry, clock: Clock, outcome: str
) -> None:
    observer = watch(registry, clock)
    for _ in range(10):
        end(observer, outcome)
    assert status(registry) is PluginStatus.ACTIVE


def test_where_callers_are_known_it_takes_two_of_them(registry: AnalyzerRegistry, clock: Clock) -> None:
    observer = watch(registry, clock, known=True)
    for _ in range(50):
        end(observer, "plugin_error", caller="hostile")
    assert status(registry) is PluginStatus.ACTIVE
    assert len(observer._failures["bad"]) == 3
    end(observer, "plugin_error", caller="other")
    assert status(registry) is PluginStatus.QUARANTINED


def test_a_released_plugin_answers_again_and_is_switched_off_again_if_it_fails_again(
    registry: AnalyzerRegistry, clock: Clock
) -> None:
    observer = watch(registry, clock)
    assert not registry.release("lensd-p"), "it is not quarantined"
    for round_ in (1, 2):
        for _ in range(3):
            end(observer, "plugin_error")
        assert status(registry) is PluginStatus.QUARANTINED
        assert registry.distribution_of("bad") is None
        assert registry.release("Lensd_P"), "as pip spells names"
        record = registry.plugins()[0]
        assert (record.status, record.problem) == (PluginStatus.ACTIVE, "")
        assert registry.resolve("bad").name == "bad"
        assert registry.errors == {"lensd-p": round_}


def test_a_plugin_that_is_not_installed_cannot_be_released(registry: AnalyzerRegistry) -> None:
    with pytest.raises(NotFound, match=r"'bad'.*there are lensd-p") as refused:
        registry.release("bad")
    assert refused.value.reason == "UNKNOWN_PLUGIN"


def test_it_can_be_left_out(registry: AnalyzerRegistry, clock: Clock) -> None:
    observer = CrashingAnalyzers(registry, PluginSettings(max_failures=None), callers_are_known=False)
    for _ in range(100):
        end(observer, "plugin_error")
    assert status(registry) is PluginStatus.ACTIVE


def test_a_plugin_that_wrote_into_weights_is_switched_off_the_first_time(registry: AnalyzerRegistry) -> None:
    blame = WritingAnalyzers(registry)
    blame("bad", "m")
    assert status(registry) is PluginStatus.QUARANTINED
    assert registry.plugins()[0].problem == "analyzer bad wrote into the weights of model m"
    blame("bad", "m")  # another model's device thread may be as far
    assert registry.errors == {"lensd-p": 1}
    assert registry.release("lensd-p")
    blame("bad", "m")
    assert status(registry) is PluginStatus.QUARANTINED


def test_a_broken_entry_point_stays_broken_when_the_distribution_is_quarantined(
    registry: AnalyzerRegistry,
) -> None:
    registry._loaded.append(LoadedPlugin(PluginRecord("q", "lensd-p", "1", PluginStatus.BROKEN, "why")))
    registry.quarantine("lensd-p", "it misbehaved")
    found = {record.name: (record.status, record.problem) for record in registry.plugins()}
    assert found == {
        "p": (PluginStatus.QUARANTINED, "it misbehaved"),
        "q": (PluginStatus.BROKEN, "why"),
    }
