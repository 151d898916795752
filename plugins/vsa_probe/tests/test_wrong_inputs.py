"""What is damaged, another model's or not a number is refused, and leaves nothing half-stored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lensd_api.testing import Engine, Job
from lensd_server.engine.models.tokens import Tokens
from lensd_server.tiny_engine import TinyEngine
from lensd_vsa_probe import VsaFit, VsaProbe
from lensd_vsa_probe.pooling import pool
from plugins.vsa_probe.tests.small_fit import small

MODEL, OTHER = "llama", "gpt2"
PROMPT = "cow : calf = hen :"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[TinyEngine]:
    engine = TinyEngine((MODEL, OTHER), state_dir=tmp_path)
    yield engine
    engine.close()


def fit(engine: Engine, model: str = MODEL, **changes: Any) -> Any:
    return engine.run(VsaFit(), Job(small(**changes), model)).error


def read(engine: Engine, artifact: str, model: str = MODEL) -> Any:
    return engine.run(VsaProbe(), Job({"artifact": artifact, "prompts": [PROMPT]}, model)).error


def stored(state: Path) -> set[str]:
    """Names of what the server keeps."""
    folder = state / "artifacts"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.mark.parametrize("blob", ["encoder.safetensors", "corpus.json", "evaluation.json"])
def test_a_corrupted_artifact_is_neither_read_nor_fitted_on(
    engine: TinyEngine, tmp_path: Path, blob: str
) -> None:
    assert fit(engine, artifact="whole") is None
    (file,) = (tmp_path / "artifacts").rglob(blob)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)
    assert read(engine, "whole").reason == "ARTIFACT_CORRUPT"
    assert fit(engine, artifact="next", analogies=None, corpus="whole").reason == "ARTIFACT_CORRUPT"
    assert stored(tmp_path) == {"whole"}


def test_another_models_artifact_is_neither_read_nor_fitted_on(engine: TinyEngine, tmp_path: Path) -> None:
    assert fit(engine, artifact="own") is None
    assert read(engine, "own", OTHER).reason == "ARTIFACT_OF_ANOTHER_MODEL"
    refused = fit(engine, OTHER, artifact="next", analogies=None, corpus="own")
    assert refused.reason == "ARTIFACT_OF_ANOTHER_MODEL"
    assert stored(tmp_path) == {"own"}


def test_a_concept_whose_token_only_the_tokenizer_knows_is_refused(
    engine: TinyEngine, tmp_path: Path, monkeypatch: Any
) -> None:
    encode = Tokens.encode

    def beyond(tokens: Tokens, text: str, **how: Any) -> tuple[int, ...]:
        return (384,) if text == " calf" else encode(tokens, text, **how)

    monkeypatch.setattr(Tokens, "encode", beyond)
    refused = fit(engine)
    assert "'calf' begins with token 384, but the model's vocabulary has 384" in refused.message
    assert [violation.field for violation in refused.violations] == ["analogies"]
    assert stored(tmp_path) == set()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_states_that_are_no_numbers_end_fit_and_reading(
    engine: TinyEngine, tmp_path: Path, monkeypatch: Any, wrong: float
) -> None:
    assert fit(engine, artifact="sound") is None

    def broken(states: Tensor, *how: Any) -> Tensor:
        pooled = pool(states, *how)
        return torch.cat([pooled[:-1], torch.full_like(pooled[-1:], wrong)])

    monkeypatch.setattr("lensd_vsa_probe.reading.pool", broken)
    for refused in (fit(engine, artifact="unsound"), read(engine, "sound")):
        assert refused.reason == "NOT_FINITE"
        assert "wider dtype" in refused.message
    assert stored(tmp_path) == {"sound"}


def test_a_fit_that_is_refused_stores_nothing(engine: TinyEngine, tmp_path: Path) -> None:
    for changes in (
        {"analogies": []},
        {"analogies": None, "texts": []},
        {"analogies": [["a", "b"] * 2] * 20},
    ):
        assert fit(engine, **changes) is not None
    assert stored(tmp_path) == set()
