"""Two models on a daemon whose memory holds one of them, as callers and an operator see it."""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import pytest

from lensd_client import Client, Progress, Warned
from lensd_client.errors import LensdError
from tests.e2e.daemon import Daemon, running_daemon

#: Bytes: either of the two fits, with what forwards need at 64 tokens and with keys and values; both do not.
BUDGET = 1_200_000


@pytest.fixture(scope="module")
def crowded(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, strangers_plugin: Path
) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("crowded")
    config = folder / "lensd.toml"
    config.write_text(
        f"""
        [limits]
        memory_bytes = {{cpu = {BUDGET}}}
        min_residency_s = 0
        max_evictions_per_minute = 2
        [models.llama]
        source = "dir:{tiny_folder / "llama"}"
        device = "cpu"
        max_batch_tokens = 64
        max_cache_bytes = 100_000
        [models.gpt2]
        source = "dir:{tiny_folder / "gpt2"}"
        device = "cpu"
        max_batch_tokens = 64
        max_cache_bytes = 100_000
        """,
        encoding="utf-8",
    )
    environment = {"PYTHONPATH": str(strangers_plugin), "LENSD_CONFIG": str(config)}
    with running_daemon(folder, environment=environment) as running:
        yield running


def sample(daemon: Daemon, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", daemon.scrape(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def residual(client: Client, model: str) -> list[float]:
    return (
        client.analyze("residual", model=model, prompt="The capital")["residual"].to_numpy().ravel().tolist()
    )


def test_models_take_turns_and_answer_as_when_alone(crowded: Daemon) -> None:
    with Client(crowded.grpc) as client:
        alone = {model: residual(client, model) for model in ("llama", "gpt2")}

        def ask(model: str) -> bool:
            return residual(client, model) == pytest.approx(alone[model], rel=1e-4, abs=1e-5)

        with ThreadPoolExecutor(8) as callers:
            answers = Counter(callers.map(ask, islice(cycle(("llama", "gpt2")), 40)))
    assert answers == {True: 40}
    evictions = sum(
        sample(crowded, f'lensd_model_evictions_total{{model="{model}",reason="{reason}"}}')
        for model in ("llama", "gpt2")
        for reason in ("idle", "turn")
    )
    assert evictions >= 2
    assert sample(crowded, 'lensd_device_memory_bytes{device="cpu",kind="budget"}') == BUDGET
    assert 0 < sample(crowded, 'lensd_device_memory_bytes{device="cpu",kind="reserved"}') <= BUDGET


def test_a_caller_hears_whose_analysis_is_waited_for(crowded: Daemon) -> None:
    heard = threading.Event()
    details: list[str] = []
    with Client(crowded.grpc, admin_target=crowded.admin) as client:
        holding = iter(client.analyze("wait", model="llama", request_id="holds"))
        for event in holding:
            if getattr(event, "name", "") == "waiting":
                break

        def want() -> None:
            for event in client.analyze("residual", model="gpt2", prompt="The capital"):
                if isinstance(event, Progress) and event.detail:
                    details.append(event.detail)
                    heard.set()

        wanting = threading.Thread(target=want)
        wanting.start()
        assert heard.wait(60)
        assert client.model("llama").detail == "makes room for gpt2"
        assert client.model("gpt2").waiting == 1
        client.cancel_analysis("holds")
        with pytest.raises(LensdError):
            list(holding)
        wanting.join(60)
        assert client.model("gpt2").state == "resident"
    assert sample(crowded, 'lensd_model_batch_tokens{model="gpt2"}') == 64
    assert "1 analyses of llama to end" in details


def test_models_that_displace_each_other_are_warned_of(crowded: Daemon) -> None:
    with Client(crowded.grpc) as client:
        reasons = [warning.reason for model in ("llama", "gpt2") * 2 for warning in warned(client, model)]
    assert "MODELS_DISPLACE_EACH_OTHER" in reasons


def warned(client: Client, model: str) -> list[Warned]:
    run = client.analyze("residual", model=model, prompt="The capital")
    return [event for event in run if isinstance(event, Warned)]
