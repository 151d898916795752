"""Results of any size arrive whole, and the daemon's own account of them agrees."""

import numpy as np
import pytest

from lensd_client import Client
from tests.e2e.daemon import Daemon

ROWS = 300_000  # about 9 MB of table and 2.4 MB of tensor: many messages of at most 1 MiB


def test_large_results_arrive_whole(lens: Client) -> None:
    run = lens.analyze("big", params={"rows": ROWS})
    table = run["rows"].to_dict()
    assert list(table["row"]) == list(range(ROWS))
    assert set(table["text"]) == {"x" * 20}
    assert np.array_equal(run["numbers"].to_numpy(), np.arange(ROWS, dtype=np.float64))


def test_parameters_beyond_the_limit_are_refused_with_both_numbers(lens: Client) -> None:
    from lensd_client.errors import LensdError

    with pytest.raises(LensdError, match=r"4194304|4\.0 MiB|4 MiB") as refused:
        list(lens.analyze("residual", model="llama", params={"prompt": "x" * 5_000_000}))
    assert refused.value.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")


def test_metrics_tell_what_happened(daemon: Daemon, lens: Client) -> None:
    list(lens.analyze("residual", model="llama", params={"prompt": "hello"}))
    text = daemon.scrape()
    assert 'lensd_analyses_total{analyzer="residual",model="llama",outcome="ok"}' in text
    assert 'lensd_model_state{model="llama",state="resident"} 1.0' in text
    assert "_created" not in text
    assert daemon.scrape("/livez")
    assert daemon.scrape("/readyz")


def test_a_strangers_analyzers_are_described(lens: Client) -> None:
    names = {analyzer.name for analyzer in lens.analyzers()}
    assert {"dla", "loop", "tick", "residual"} <= names
    loop = lens.analyzer("stranger:loop")
    assert loop.params_schema["properties"]["seconds"]["type"] == "number"
