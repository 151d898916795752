"""Nobody ever gets another caller's rows, and no analysis holds another one up."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lensd_client import Client, Request
from lensd_client.errors import LensdError
from tests.e2e.daemon import Daemon

TEXT = "The capital of France is far from here, said Mary, and then John gave a drink to nobody at all."
#: Different beginnings, lengths and endings, so that rows of a batch are unequal.
PROMPTS = [f"{TEXT[i % 7 : i % 7 + 3 + (i * 5) % 60]} {i}" for i in range(64)]


def values(client: Client, model: str, prompt: str) -> np.ndarray:
    run = client.analyze("dla", model=model, params={"prompt": prompt, "unit": "head"})
    return np.asarray(run["contributions"].to_dict()["value"], dtype=np.float64)


@pytest.mark.parametrize("model", ["llama", "gpt2", "gemma2"])
def test_64_prompts_from_16_clients_equal_themselves_alone(daemon: Daemon, model: str) -> None:
    with Client(daemon.grpc) as client:
        alone = [values(client, model, prompt) for prompt in PROMPTS]
    assert len({array.tobytes() for array in alone}) == len(PROMPTS), "the prompts must tell rows apart"
    start = threading.Barrier(16)

    def caller(number: int) -> list[np.ndarray]:
        with Client(daemon.grpc) as client:
            start.wait()
            return [values(client, model, prompt) for prompt in PROMPTS[number::16]]

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(caller, range(16)))
    for number, found in enumerate(together):
        for expected, array in zip(alone[number::16], found, strict=True):
            assert array.shape == expected.shape
            assert np.abs(array - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_rows_did_share_batches(daemon: Daemon) -> None:
    """Without this the test above could pass by running everything alone."""
    with Client(daemon.grpc) as client:
        requests = [Request("dla", "llama", {"prompt": prompt}) for prompt in PROMPTS]
        outcomes = list(client.analyze_many(requests))
    assert len(outcomes) == len(PROMPTS)
    completed = [outcome.completed for outcome in outcomes]
    assert max(end.usage.largest_batch for end in completed if end is not None) > 1


def test_an_analyzer_looping_in_python_delays_nobody(daemon: Daemon) -> None:
    """Ten seconds of looping beside 50 ticks a tenth of a second apart.

    Were each tick more than 100 ms late, the 50 would take more than ten seconds and the
    last would come after the loop's end.
    """
    order: list[str] = []
    looping = threading.Event()

    def loop() -> None:
        with Client(daemon.grpc) as client:
            for event in client.analyze("loop", params={"seconds": 10.0}):
                name = getattr(event, "name", "")
                if name == "looping":
                    looping.set()
                elif name == "looped":
                    order.append("looped")

    other = threading.Thread(target=loop)
    other.start()
    assert looping.wait(timeout=30)
    with Client(daemon.grpc) as client:
        run = client.analyze("tick", params={"count": 50})
        assert len(run["ticks"].to_dict()["tick"]) == 50
        order.append("ticked")
    other.join()
    assert order == ["ticked", "looped"]


def test_a_crashing_analysis_harms_nobody_and_keeps_its_secret(daemon: Daemon, lens: Client) -> None:
    waiting = lens.analyze("tick", params={"count": 5})
    with pytest.raises(LensdError) as failed:
        list(lens.analyze("crash"))
    assert failed.value.code == "INTERNAL"
    assert failed.value.reason == "PLUGIN_FAILURE"
    assert "secret" not in str(failed.value)
    error_id = failed.value.metadata["error_id"]
    assert error_id in str(failed.value)
    log = daemon.log.read_text()
    assert error_id in log
    assert "a secret in the plugin's own words" in log
    assert len(waiting["ticks"].to_dict()["tick"]) == 5
