"""From the ready line to the last signal, as an operator and a service see it."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lensd_client import Client, Event
from lensd_client.errors import DeadlineExceeded, LensdError, NotFound, PermissionDenied, Unavailable
from tests.e2e.daemon import Daemon, running_daemon


def no_leases(client: Client, model: str) -> bool:
    return client.model(model).leases == 0


def wait_for_result(events: Iterator[Event], name: str) -> None:
    """Reads until a result, or a part of one, called ``name``."""
    for event in events:
        if getattr(event, "name", "") == name:
            return
    raise AssertionError(f"the stream ended without {name}")


def wait_for_no_analyses(client: Client) -> None:
    """Cancelling is quick but not instant for an observer: ask until the list is empty."""
    pause = threading.Event()
    for _ in range(100):
        if not client.analyses():
            return
        pause.wait(0.05)
    raise AssertionError(f"still running: {client.analyses()}")


def test_a_client_that_vanishes_leaves_nothing_running(daemon: Daemon, lens: Client) -> None:
    other = Client(daemon.grpc)
    run = other.analyze("wait", model="llama")
    events = iter(run)
    wait_for_result(events, "waiting")
    assert [analysis.analyzer for analysis in lens.analyses()] == ["wait"]
    other.close()
    wait_for_no_analyses(lens)
    assert no_leases(lens, "llama")


def test_an_operator_sees_and_cancels_an_analysis(daemon: Daemon, lens: Client) -> None:
    run = lens.analyze("wait", model="llama", request_id="watched")
    events = iter(run)
    wait_for_result(events, "waiting")
    assert lens.cancel_analysis("watched")
    with pytest.raises(LensdError) as ended:
        list(events)
    assert ended.value.code == "CANCELLED"
    wait_for_no_analyses(lens)
    assert not lens.cancel_analysis("watched")


def test_a_deadline_ends_an_analysis(lens: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        list(lens.analyze("wait", model="llama", timeout_s=0.3))
    wait_for_no_analyses(lens)
    assert no_leases(lens, "llama")


def test_mutations_are_refused_on_the_public_listener(daemon: Daemon) -> None:
    with Client(daemon.grpc) as client:
        with pytest.raises(PermissionDenied):
            client.unload("gpt2")
        assert client.model("gpt2").state == "resident"


def test_unload_waits_for_a_running_analysis_and_load_brings_the_model_back(
    daemon: Daemon, lens: Client
) -> None:
    run = lens.analyze("wait", model="gpt2", request_id="holds-gpt2")
    events = iter(run)
    wait_for_result(events, "waiting")
    done = threading.Event()

    def unload() -> None:
        with Client(daemon.grpc, admin_target=daemon.admin) as client:
            client.unload("gpt2")
        done.set()

    states = iter(lens.watch_models())
    thread = threading.Thread(target=unload)
    thread.start()
    for model in states:
        if model.name == "gpt2" and model.state == "draining":
            break
    assert not done.is_set(), "the model was taken from a running analysis"
    lens.cancel_analysis("holds-gpt2")
    thread.join(timeout=30)
    assert done.is_set()
    assert lens.model("gpt2").state == "cold"
    last = list(lens.load("gpt2"))[-1]
    assert last.model.state == "resident"
    assert last.fraction == 1.0


def test_a_cold_model_is_loaded_on_demand(lens: Client) -> None:
    lens.unload("gpt2")
    run = lens.analyze("residual", model="gpt2", params={"prompt": "hello"})
    stages = [event.stage for event in run if hasattr(event, "stage")]
    assert run["residual"].to_numpy().shape[1] == 64
    assert any("load" in stage for stage in stages), stages


def test_an_unknown_model_names_those_there_are(lens: Client) -> None:
    with pytest.raises(NotFound, match="llama"):
        list(lens.analyze("dla", model="lama", params={"prompt": "x"}))


def test_health_follows_the_models(lens: Client) -> None:
    assert lens.health() == "SERVING"
    assert lens.health("lensd.v1.Model/llama") == "SERVING"
    assert lens.health("lensd.v1.AnalysisService") == "SERVING"


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_running_analysis_finishes_before_the_daemon_stops(
    tmp_path: Path, tiny_folder: Path, strangers_plugin: Path, stop: signal.Signals
) -> None:
    flags = ("--model", f"llama=dir:{tiny_folder / 'llama'}")
    with running_daemon(tmp_path, *flags, environment={"PYTHONPATH": str(strangers_plugin)}) as running:
        with Client(running.grpc) as client:
            run = client.analyze("tick", params={"count": 15})
            events = iter(run)
            wait_for_result(events, "ticks")
            running.process.send_signal(stop)
            with pytest.raises(Unavailable) as late:
                # Whatever got in before the signal arrived is a tick that finishes, too.
                for _ in range(200):
                    list(client.analyze("tick", params={"count": 1}))
            assert late.value.reason == "DRAINING"
            list(events)
            assert len(run["ticks"].to_dict()["tick"]) == 15
        assert running.process.wait(timeout=30) == 0
    assert "Traceback" not in running.log.read_text()


def test_an_analyzer_that_holds_the_others_up_ends_with_the_daemon(
    tmp_path: Path, strangers_plugin: Path, tiny_folder: Path
) -> None:
    (tmp_path / "lensd.toml").write_text("[limits]\nmax_stall_s = 1.0\n[server]\ngrace_s = 1.0\n")
    flags = ("--config", str(tmp_path / "lensd.toml"), "--model", f"llama=dir:{tiny_folder / 'llama'}")
    with running_daemon(tmp_path, *flags, environment={"PYTHONPATH": str(strangers_plugin)}) as running:
        with Client(running.grpc) as client:
            with pytest.raises(LensdError) as failed:
                list(client.analyze("block", params={"seconds": 30.0}))
            assert failed.value.reason == "ANALYZER_STUCK"
        assert running.process.wait(timeout=30) == 1
    log = running.log.read_text()
    assert "plugin quarantined" in log
    assert "start it anew" in log


def test_a_plugin_that_crashed_too_often_serves_again_when_an_operator_releases_it(
    tmp_path: Path, strangers_plugin: Path
) -> None:
    (tmp_path / "lensd.toml").write_text("[plugins]\nmax_failures = 2\n")
    environment = {"PYTHONPATH": str(strangers_plugin)}
    with (
        running_daemon(
            tmp_path, "--config", str(tmp_path / "lensd.toml"), environment=environment
        ) as running,
        Client(running.grpc, admin_target=running.admin) as client,
    ):
        for _ in range(2):
            for _ in range(2):
                with pytest.raises(LensdError, match="error id"):
                    client.analyze("crash").finish()
            with pytest.raises(LensdError) as refused:
                client.analyze("crash", crash=False).finish()
            assert refused.value.reason == "PLUGIN_QUARANTINED"
            assert client.release_plugin(refused.value.metadata["distribution"])
            client.analyze("crash", crash=False).finish()
            assert {plugin.status for plugin in client.plugins()} == {"active"}
    assert running.log.read_text().count("plugin released") == 2


def test_a_model_that_a_plugin_wrote_into_comes_back_whole_and_without_the_plugin(
    tmp_path: Path, strangers_plugin: Path, tiny_folder: Path
) -> None:
    params = {"prompt": "hello there", "unit": "head"}
    flags = ("--model", f"llama=dir:{tiny_folder / 'llama'}")
    with running_daemon(tmp_path, *flags, environment={"PYTHONPATH": str(strangers_plugin)}) as running:
        with Client(running.grpc) as client:
            before = client.analyze("dla", model="llama", params=params)["contributions"].to_dict()
            with pytest.raises(LensdError):
                list(client.analyze("scribble", model="llama"))
            after = client.analyze("dla", model="llama", params=params)["contributions"].to_dict()
            assert after == before
            with pytest.raises(LensdError) as refused:
                list(client.analyze("scribble", model="llama"))
            assert "wrote into the weights of model llama" in str(refused.value)
            assert client.model("llama").state == "resident"
