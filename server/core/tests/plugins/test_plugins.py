"""Plugins broken in every way there is: reported, never fatal."""

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from lensd_api.errors import UnknownAnalyzer
from lensd_api.hookspecs import AnalysisRecord
from lensd_server.plugins import AnalyzerRegistry, PluginRecord, PluginStatus, discover

GOOD = """
    from lensd_api import Analyzer, Record, hookimpl

    class Good(Analyzer):
        name = "{name}"
        async def analyze(self, params, ctx):
            yield Record("r", {{}})

    @hookimpl
    def lensd_analyzers():
        return [Good()]
"""


class Site:
    """A folder on the path in which a test installs distributions."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules: set[str] = set()

    def install(
        self,
        distribution: str,
        code: str | None = None,
        *,
        version: str = "1.0",
        requires: str = "",
        entry_points: str | None = None,
    ) -> None:
        """Writes a distribution whose module is named after it."""
        module = distribution.replace("-", "_")
        info = self.root / f"{module}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata + (f"Requires-Dist: {requires}\n" if requires else ""))
        (info / "entry_points.txt").write_text(entry_points or f"[lensd]\n{module} = {module}\n")
        if code is not None:
            (self.root / f"{module}.py").write_text(textwrap.dedent(code))
        self.modules.add(module)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A path on which nothing is installed but what a test installs."""
    site = Site(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    from importlib import metadata

    found = metadata.distributions

    def only_ours(**kwargs: Any) -> Any:
        return found(path=[str(tmp_path)])

    monkeypatch.setattr(metadata, "distributions", only_ours)
    yield site
    for module in site.modules:
        sys.modules.pop(module, None)


@pytest.fixture
def discovered(site: Site) -> Callable[..., AnalyzerRegistry]:
    """Discovers without writing to the log."""

    def find(**kwargs: Any) -> AnalyzerRegistry:
        with structlog.testing.capture_logs():
            return discover(**kwargs)

    return find


def only(registry: AnalyzerRegistry) -> PluginRecord:
    (record,) = registry.plugins()
    return record


def test_a_good_plugin_answers_to_its_bare_and_its_qualified_name(site: Site, discovered: Any) -> None:
    site.install("good", GOOD.format(name="count"), version="1.2.3", requires="lensd-api>=0.1,<0.2")
    registry = discovered()
    record = only(registry)
    assert (record.status, record.version, record.problem) == (PluginStatus.ACTIVE, "1.2.3", "")
    assert record.analyzers == ("count",)
    assert registry.resolve("count").analyzer is registry.resolve("good:count").analyzer
    assert registry.resolve("good:count").name == "good:count"
    assert [a.name for a in registry.analyzers()] == ["count"]


def test_several_hooks_and_hook_arguments_that_are_left_out_are_fine(site: Site, discovered: Any) -> None:
    code = GOOD.format(name="count") + "\n    @hookimpl\n    def lensd_analysis_started():\n        pass\n"
    site.install("good", code)
    assert only(discovered()).status is PluginStatus.ACTIVE


BROKEN = {
    "import_error": ("import no_such_module_anywhere", "ModuleNotFoundError: No module named"),
    "syntax_error": ("def (", "SyntaxError"),
    "raises": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "odd_base_exception": ("class Odd(BaseException): pass\nraise Odd('why')", "Odd: why"),
    "no_hooks": ("x = 1", "implements no hook"),
    "bad_signature": (
        "from lensd_api import hookimpl\n@hookimpl\ndef lensd_analyzers(wrong): return []",
        "its hooks are wrong",
    ),
    "unknown_hook": (
        "from lensd_api import hookimpl\n@hookimpl\ndef lensd_analysers(): return []",
        "lensd_analysers",
    ),
    "hook_raises": (
        "from lensd_api import hookimpl\n@hookimpl\ndef lensd_analyzers(): raise KeyError('x')",
        "lensd_analyzers failed: KeyError",
    ),
    "hook_exits": (
        "from lensd_api import hookimpl\nimport sys\n@hookimpl\ndef lensd_analyzers(): sys.exit()",
        "lensd_analyzers failed: SystemExit",
    ),
    "not_a_list": (
        "from lensd_api import hookimpl\n@hookimpl\ndef lensd_analyzers(): return 5",
        "returned a int, not a list",
    ),
    "not_an_analyzer": (
        "from lensd_api import hookimpl\n@hookimpl\ndef lensd_analyzers(): return [object()]",
        "object is not a lensd_api.Analyzer",
    ),
    "bad_name": (GOOD.format(name="Bad Name"), "must match"),
    "no_generator": (
        """
        from lensd_api import Analyzer, hookimpl
        class Plain(Analyzer):
            name = "plain"
            def analyze(self, params, ctx): return []
        @hookimpl
        def lensd_analyzers(): return [Plain()]
        """,
        "must be a generator",
    ),
    "wrong_arguments": (
        """
        from lensd_api import Analyzer, hookimpl
        class Few(Analyzer):
            name = "few"
            async def analyze(self, params): yield
        @hookimpl
        def lensd_analyzers(): return [Few()]
        """,
        "must accept",
    ),
    "requirements_raise": (
        """
        from lensd_api import Analyzer, hookimpl
        class Needy(Analyzer):
            name = "needy"
            async def analyze(self, params, ctx): yield
            def requirements(self, params=None): return params.prompt
        @hookimpl
        def lensd_analyzers(): return [Needy()]
        """,
        "needy cannot be described: AttributeError",
    ),
    "schema_raises": (
        """
        from collections.abc import Callable
        from lensd_api import Analyzer, BaseParams, hookimpl
        class Odd(Analyzer):
            name = "odd"
            class Params(BaseParams):
                call: Callable[[], int]
            async def analyze(self, params, ctx): yield
        @hookimpl
        def lensd_analyzers(): return [Odd()]
        """,
        "odd cannot be described: PydanticInvalidForJsonSchema",
    ),
    "same_name_twice": (
        GOOD.format(name="twin") + "\n    lensd_analyzers = hookimpl(lambda: [Good(), Good()])\n",
        "one analyzer name twice",
    ),
}


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_a_broken_plugin_is_reported_and_harms_nobody(site: Site, discovered: Any, kind: str) -> None:
    code, complaint = BROKEN[kind]
    site.install(f"broken-{kind.replace('_', '-')}", code)
    site.install("good", GOOD.format(name="count"))
    registry = discovered()
    records = {record.distribution: record for record in registry.plugins()}
    broken = records[f"broken-{kind.replace('_', '-')}"]
    assert broken.status is PluginStatus.BROKEN
    assert complaint in broken.problem
    assert "Traceback" not in broken.problem
    assert broken.analyzers == ()
    assert records["good"].status is PluginStatus.ACTIVE
    assert [a.name for a in registry.analyzers()] == ["count"]


def test_a_long_problem_is_cut(site: Site, discovered: Any) -> None:
    site.install("loud", "raise RuntimeError('x' * 9000)")
    assert len(only(discovered()).problem) == 500


def test_ctrl_c_during_an_import_is_not_swallowed(site: Site) -> None:
    site.install("interrupted", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        discover()


@pytest.mark.parametrize("requires", ["lensd-api>=99", "lensd-api<0.1", "LENSD_API>=99"])
def test_a_plugin_for_another_api_version_is_not_even_imported(
    site: Site, discovered: Any, requires: str
) -> None:
    site.install("future", "raise AssertionError('imported')", requires=requires)
    record = only(discovered())
    assert record.status is PluginStatus.BROKEN
    assert record.problem.startswith("it requires lensd-api")
    assert "future" not in sys.modules


@pytest.mark.parametrize("requires", ["lensd-api>=99; extra == 'test'", "numpy>=99", "what is this"])
def test_other_requirements_are_not_ours_to_judge(site: Site, discovered: Any, requires: str) -> None:
    site.install("good", GOOD.format(name="count"), requires=requires)
    assert only(discovered()).status is PluginStatus.ACTIVE


def test_a_module_that_is_missing_is_a_problem_of_its_plugin(site: Site, discovered: Any) -> None:
    site.install("hollow", code=None)
    assert "importing hollow failed: ModuleNotFoundError" in only(discovered()).problem


def test_unreadable_entry_points_are_reported_only_where_they_are_ours(site: Site, discovered: Any) -> None:
    site.install("garbled", entry_points="[lensd]\nthis is no entry point\n")
    site.install("someone-else", entry_points="[console_scripts]\nno entry point either\n")
    record = only(discovered())
    assert (record.distribution, record.status) == ("garbled", PluginStatus.BROKEN)
    assert "entry_points.txt" in record.problem


def test_a_folder_that_only_looks_like_a_distribution_is_passed_over(site: Site, discovered: Any) -> None:
    (site.root / "odd-1.0.dist-info").mkdir()
    (site.root / "odd-1.0.dist-info" / "entry_points.txt").write_text("[lensd]\nodd = odd\n")
    site.install("good", GOOD.format(name="count"))
    assert only(discovered()).distribution == "good"


def test_two_plugins_with_one_name_both_answer_to_the_qualified_name_only(
    site: Site, discovered: Any
) -> None:
    site.install("first", GOOD.format(name="count"))
    site.install("second", GOOD.format(name="count"))
    registry = discovered()
    with pytest.raises(UnknownAnalyzer, match="first:count, second:count") as refused:
        registry.resolve("count")
    assert refused.value.reason == "AMBIGUOUS_ANALYZER"
    assert registry.resolve("first:count").distribution == "first"
    assert registry.resolve("second:count").distribution == "second"
    first, second = registry.plugins()
    assert first.status is second.status is PluginStatus.ACTIVE
    assert (first.analyzers, second.analyzers) == (("first:count",), ("second:count",))
    assert "also offered by second" in first.problem


def test_an_unknown_name_lists_the_known_ones(site: Site, discovered: Any) -> None:
    site.install("good", GOOD.format(name="count"))
    with pytest.raises(UnknownAnalyzer, match="available: count"):
        discovered().resolve("cuont")


def test_what_the_allow_list_leaves_out_is_not_imported(site: Site, discovered: Any) -> None:
    site.install("my-Good", GOOD.format(name="count"))
    site.install("stranger", "raise AssertionError('imported')")
    registry = discovered(allow=["My.good"])
    good, stranger = registry.plugins()
    assert (good.status, stranger.status) == (PluginStatus.ACTIVE, PluginStatus.DISABLED)
    assert "allow-list" in stranger.problem
    assert "stranger" not in sys.modules


OBSERVER = """
    from lensd_api import hookimpl
    seen = []

    @hookimpl
    def lensd_analysis_started(analysis):
        seen.append(("started", analysis.request_id))
        if {fails}:
            raise RuntimeError("hook")

    @hookimpl
    def lensd_analysis_finished(analysis):
        seen.append(("finished", analysis.outcome))
"""


def test_observers_are_told_and_one_that_fails_is_counted(site: Site, discovered: Any) -> None:
    site.install("bad-observer", OBSERVER.format(fails=True))
    site.install("good-observer", OBSERVER.format(fails=False))
    registry = discovered()
    with structlog.testing.capture_logs() as logs:
        registry.started(AnalysisRecord("r", "a", "m"))
        registry.finished(AnalysisRecord("r", "a", "m", outcome="ok"))
    for name in ("bad_observer", "good_observer"):
        assert sys.modules[name].seen == [("started", "r"), ("finished", "ok")]
    assert registry.errors == {"bad-observer": 1}
    assert [log["distribution"] for log in logs] == ["bad-observer"]


def test_sources_and_collectors_of_plugins_are_collected(site: Site, discovered: Any) -> None:
    site.install(
        "extras",
        """
        from lensd_api import hookimpl
        class Source:
            scheme = "s3"
            def fetch(self, location, cache): ...
        @hookimpl
        def lensd_model_sources(): return [Source()]
        @hookimpl
        def lensd_metrics(): return ["a collector"]
        """,
    )
    site.install(
        "failing",
        """
        from lensd_api import hookimpl
        @hookimpl
        def lensd_model_sources(): return [object()]
        @hookimpl
        def lensd_metrics(): raise RuntimeError
        """,
    )
    registry = discovered()
    with structlog.testing.capture_logs():
        assert list(registry.model_sources()) == ["s3"]
        assert registry.metrics_collectors() == [("extras", "a collector")]
    assert registry.errors == {"failing": 2}
