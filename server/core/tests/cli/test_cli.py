"""The lensd command, as scripts depend on it."""

import json
import logging
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result

from lensd_server import __version__, cli, plugins
from lensd_server.plugins import AnalyzerRegistry, LoadedPlugin, PluginRecord, PluginStatus
from lensd_server.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lensd.toml and no LENSD_ variable."""
    import os

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LENSD_")]:
        monkeypatch.delenv(name)


def lensd(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Settings with which the daemon would have been run."""
    import types

    seen: list[Settings] = []
    app: Any = types.ModuleType("lensd_server.app")

    def serve(settings: Settings, reread: Callable[[], Settings]) -> int:
        seen.append(settings)
        app.reread = reread
        return 7

    app.serve = serve
    monkeypatch.setitem(sys.modules, "lensd_server.app", app)
    # The test run keeps its own handlers.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return seen


def test_help_and_version_need_neither_torch_nor_grpc() -> None:
    code = (
        "import sys\nfrom lensd_server.cli import main\n"
        "for flag in ('--help', '--version'):\n"
        "    try: main([flag])\n"
        "    except SystemExit as done: assert not done.code\n"
        "heavy = {'torch', 'transformers', 'grpc'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"lensd, version {__version__}" in done.stdout
    for command in ("serve", "doctor", "plugins", "new-plugin"):
        assert command in done.stdout


def test_listing_plugins_does_not_import_torch_by_itself() -> None:
    code = (
        "import sys\nfrom lensd_server.plugins import discover\n"
        "discover(allow=[]).plugins()\n"
        "heavy = {'torch', 'transformers', 'grpc'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_flags_of_serve_reach_the_daemon_and_its_status_the_shell(served: list[Settings]) -> None:
    done = lensd(
        *("serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:1", "--metrics-listen", "[::1]:2"),
        *("--state-dir", "state", "--model", "a=dir:/a", "--model", "b=gguf:/b.gguf"),
    )
    assert done.exit_code == 7, done.output
    (settings,) = served
    server = settings.server
    assert (server.listen, server.admin_listen, server.metrics_listen) == (
        "127.0.0.1:0",
        "127.0.0.1:1",
        "[::1]:2",
    )
    assert server.state_dir == Path("state")
    assert {name: (m.source, m.preload) for name, m in settings.models.items()} == {
        "a": ("dir:/a", True),
        "b": ("gguf:/b.gguf", True),
    }


def test_without_flags_the_embedded_model_is_served(served: list[Settings]) -> None:
    assert lensd("serve").exit_code == 7
    assert list(served[0].models) == ["smollm2-135m"]


def test_a_reload_reads_the_same_file_and_flags_again(served: list[Settings]) -> None:
    Path("lensd.toml").write_text("[limits]\nmax_analyses = 3\n")
    assert lensd("serve", "--listen", "127.0.0.1:0", "--model", "a=dir:/a").exit_code == 7
    reread = sys.modules["lensd_server.app"].reread
    Path("lensd.toml").write_text("[limits]\nmax_analyses = 5\n")
    again = reread()
    assert (again.limits.max_analyses, again.server.listen, list(again.models)) == (5, "127.0.0.1:0", ["a"])
    Path("lensd.toml").unlink()
    with pytest.raises(SettingsError, match=r"lensd\.toml"):
        reread()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_ends_it_quietly(number: signal.Signals) -> None:
    code = (
        "import os, sys, types\nfrom lensd_server.cli import main\n"
        "app = sys.modules['lensd_server.app'] = types.ModuleType('app')\n"
        f"app.serve = lambda settings, reread: os.kill(os.getpid(), {number.value}) or 5\n"
        "main(['serve'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--listen", "0.0.0.0:50051"], "allow_insecure"),
        (["--listen", "nonsense"], "not HOST:PORT"),
        (["--model", "nonsense"], "NAME=SOURCE"),
        (["--config", "nowhere.toml"], "No such file"),
        (["--colour"], "No such option"),
    ],
)
def test_wrong_usage_is_status_2_and_explained(
    served: list[Settings], arguments: list[str], complaint: str
) -> None:
    done = lensd("serve", *arguments)
    assert done.exit_code == 2
    assert complaint in " ".join(done.output.split())
    assert served == []


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One plugin that works and one that does not."""
    records = [
        PluginRecord("dla", "lensd-dla", "0.1.0", PluginStatus.ACTIVE, analyzers=("dla",)),
        PluginRecord("bad", "lensd-bad", "9", PluginStatus.BROKEN, "importing bad failed: [Errno 2] gone"),
    ]
    registry = AnalyzerRegistry([LoadedPlugin(record) for record in records])
    monkeypatch.setattr(plugins, "discover", lambda allow=None: registry)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """The command sets up logging process-wide."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("installed")
def test_plugins_are_drawn_as_a_table_with_the_problems_below() -> None:
    done = lensd("plugins")
    assert done.exit_code == 0
    assert "lensd-dla" in done.output
    assert "lensd-bad: importing bad failed: [Errno 2] gone" in done.output


@pytest.mark.usefixtures("installed")
def test_plugins_are_printed_as_json() -> None:
    done = lensd("plugins", "--json")
    assert json.loads(done.output)["plugins"][0] == {
        "name": "bad",
        "distribution": "lensd-bad",
        "version": "9",
        "status": "broken",
        "problem": "importing bad failed: [Errno 2] gone",
        "analyzers": [],
    }


def test_a_broken_plugin_does_not_spoil_the_json(tmp_path: Path) -> None:
    import os

    info = tmp_path / "site" / "shaky-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shaky\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lensd]\nshaky = shaky_module_that_is_not_there\n")
    Path("lensd.toml").write_text('[plugins]\nallow = ["shaky"]\n')
    done = subprocess.run(
        [sys.executable, "-c", "from lensd_server.cli import main; main(['plugins', '--json'])"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    found = {plugin["distribution"]: plugin for plugin in json.loads(done.stdout)["plugins"]}
    assert found["shaky"]["status"] == "broken"
    assert done.stderr == ""


def test_a_new_plugin_is_a_whole_package_with_its_own_names() -> None:
    done = lensd("new-plugin", "my-probe", "--dir", "below")
    assert done.exit_code == 0, done.output
    folder = Path("below/lensd-my-probe")
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "lensd-my-probe"
    assert project["project"]["entry-points"]["lensd"] == {"my-probe": "lensd_my_probe"}
    source = (folder / "src/lensd_my_probe/__init__.py").read_text()
    assert "class MyProbe(Analyzer)" in source
    assert 'name = "my-probe"' in source
    assert (folder / "src/lensd_my_probe/py.typed").is_file()
    assert list((folder / "tests").glob("test_*.py"))
    texts = "".join(p.read_text() for p in folder.rglob("*") if p.is_file())
    for left_over in ("lensd-template", "lensd_template", "TokenCount", "token-count"):
        assert left_over not in texts
    assert str(folder) in done.output


def test_a_new_plugin_can_be_found_and_has_no_flaw(monkeypatch: pytest.MonkeyPatch) -> None:
    from lensd_api.analyzer import find_flaw

    assert lensd("new-plugin", "found").exit_code == 0
    monkeypatch.syspath_prepend(str(Path("lensd-found/src").absolute()))
    import importlib

    module = importlib.import_module("lensd_found")
    monkeypatch.delitem(sys.modules, "lensd_found")
    (analyzer,) = module.lensd_analyzers()
    assert find_flaw(analyzer) is None
    assert analyzer.name == "found"


def test_nothing_is_overwritten() -> None:
    Path("lensd-mine").mkdir()
    done = lensd("new-plugin", "mine")
    assert done.exit_code == 1
    assert "exists already" in done.output


@pytest.mark.parametrize("name", ["My-Probe", "../up", "a b", "1st", "a_b", "-x", "a--b", "x" * 60])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    done = lensd("new-plugin", "--", name)
    assert done.exit_code == 1
    assert "cannot name a plugin" in done.output
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", ["dla", "torch"])
def test_a_new_plugin_takes_no_name_of_what_is_installed(name: str, tmp_path: Path) -> None:
    done = lensd("new-plugin", name, "--dir", str(tmp_path))
    assert done.exit_code != 0
    assert "installed already" in done.output
    assert not list(tmp_path.iterdir())


def test_dashboards_are_written_where_they_are_wanted(tmp_path: Path) -> None:
    done = lensd("dashboards", "--out", str(tmp_path / "out"), "--runbook-url", "https://wiki.example/lensd")
    assert done.exit_code == 0, done.output
    written = done.output.splitlines()
    assert {str(path) for path in (tmp_path / "out").rglob("*") if path.is_file()} == set(written)
    assert json.loads((tmp_path / "out" / "grafana" / "lensd-overview.json").read_text())["panels"]
    rules = (tmp_path / "out" / "prometheus" / "lensd-rules.yml").read_text()
    assert "runbook_url: https://wiki.example/lensd#lensddown" in rules
    # An upgrade writes over what was there.
    (tmp_path / "out" / "runbook.md").write_text("old")
    assert lensd("dashboards", "--out", str(tmp_path / "out")).exit_code == 0
    assert "LensdDown" in (tmp_path / "out" / "runbook.md").read_text()


def test_dashboards_say_why_they_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = lensd("dashboards", "--out", str(tmp_path / "file" / "below"))
    assert done.exit_code == 1
    assert str(tmp_path / "file") in done.output
