"""From a source to a verified, warm model on its device. Runs on a loading thread."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import structlog
import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from lensd_api import LoadFailed
from lensd_server.engine.anatomy.inspect import InspectedModel, inspect_model
from lensd_server.engine.batching.price import Price, Prices
from lensd_server.engine.device import Device, choose_dtype, dtype_name, set_cpu_threads
from lensd_server.engine.handle import Card
from lensd_server.engine.models.building import build_beside_others
from lensd_server.engine.models.checkpoint import read_checkpoint
from lensd_server.engine.models.conversion import ConversionCache
from lensd_server.engine.models.digests import Digests
from lensd_server.engine.models.products import library, use_quickest
from lensd_server.engine.models.sizing import needed_bytes
from lensd_server.engine.models.sources import ALLOWED, Sources
from lensd_server.engine.models.tokens import Tokens
from lensd_server.engine.models.working import WorkingMemory
from lensd_server.settings import ModelSettings

_log = structlog.get_logger("lensd.engine")

#: Any of them is what a tokenizer can be read from.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")

#: Called with a stage and the share of the whole load that is done when it begins.
Report = Callable[[str, float], None]

#: Called once with the bytes that the model will need on each of its possible devices; answers the one
#: it is to be on, as soon as they are free there.
ClaimMemory = Callable[[Callable[[Device], int]], Device]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to serve. ``price``: what its forwards take here."""

    card: Card
    model: InspectedModel
    device: Device
    resident_bytes: int
    parameters: int
    price: Price
    #: What forwards need beside the weights, as far as it was measured.
    working_bytes: int = 0

    def batch_tokens(self, settings: ModelSettings) -> int:
        """Padded tokens that a batch may hold: as configured, or as many as were measured to pay."""
        return settings.max_batch_tokens or self.price.saturation(*self.device.batch_tokens)


class Loader:
    """Loads models; ``cache`` holds conversions, digests and measured prices."""

    def __init__(
        self,
        cache: Path,
        *,
        sources: Sources | None = None,
        conversions: ConversionCache | None = None,
    ) -> None:
        self._cache = cache
        self._sources = sources or Sources()
        self._digests = Digests(cache / "digests")
        self._conversions = conversions or ConversionCache(cache / "converted", self._digests)
        self._prices = Prices(cache / "prices")
        self._working = WorkingMemory(cache / "working")

    def load(self, name: str, settings: ModelSettings, report: Report, claim: ClaimMemory) -> LoadedModel:
        """Makes ``settings.source`` a resident model.

        Raises LoadFailed, whose message says what to do; foreign exceptions pass through.
        """
        report("fetch", 0.0)
        path = self._sources.fetch(settings.source, self._cache)
        if path.is_dir():
            check_configuration(path)
        device = claim(lambda device: self._predict(path, choose_dtype(settings.dtype, on_cpu=device.is_cpu)))
        if path.is_file():
            report("convert", 0.1)
            path = self._conversions.converted(path)
        report("read", 0.4)
        before = stamps(path)
        revision = self._digests.of_files(path, checkpoint_files(path))
        # Half a second that needs neither the weights nor the device: beside them.
        with ThreadPoolExecutor(1, "lensd-tokenizer") as aside:
            tokenizer = aside.submit(read_tokenizer, path)
            module = read_weights(path, device, settings.dtype)
            if stamps(path) != before:
                raise LoadFailed(
                    f"the checkpoint in {path} was changed while it was read; load it again",
                    reason="CHECKPOINT_CHANGED",
                )
            if settings.products == "auto" and device.is_cpu:
                with device.turn:
                    use_quickest(module)
                _log.info("chose how to multiply", model=name, library=library(module))
            loaded = prepare(name, revision, module, tokenizer.result, device, report, self._prices)
        tokens = loaded.batch_tokens(settings)
        _log.info("sized batches", model=name, tokens=tokens)
        with device.entered(), device.turn:
            working_bytes = self._working.bytes_for(loaded.model, device, revision, tokens)
        return replace(loaded, working_bytes=working_bytes)

    def _predict(self, path: Path, dtype: torch.dtype | str) -> int:
        """Bytes of weights and a margin, from the headers of the files."""
        converted = self._conversions.find(path) if path.is_file() else None
        return needed_bytes(converted or path, dtype)


def checkpoint_files(folder: Path) -> list[Path]:
    """Weights, configuration and tokenizer of ``folder``: what its revision covers."""
    return sorted({path for pattern in ALLOWED for path in folder.glob(pattern)})


def stamps(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """What shows that a file of the checkpoint was written or replaced, even by one with the same contents:

    only so is it certain that what was hashed is what was read.
    """
    stats = {path: path.stat() for path in checkpoint_files(folder)}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``, without running code of its own. Raises LoadFailed."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers or sentencepiece, each with errors of its own
        raise LoadFailed(
            f"the tokenizer in {folder} cannot be read; copy tokenizer.json and tokenizer_config.json from where "
            "the model comes from",
            reason="NO_TOKENIZER",
        ) from error


def read_weights(folder: Path, device: Device, dtype: str) -> PreTrainedModel:
    """The model in ``folder`` on ``device``. Raises LoadFailed for one that would run code."""
    check_configuration(folder)
    set_cpu_threads()
    # A daemon's terminal is a log: no progress bars in it.
    transformers_logging.disable_progress_bar()
    wanted: dict[str, Any] = {
        "dtype": choose_dtype(dtype, on_cpu=device.is_cpu),
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    try:
        # What goes to a GPU is copied there at once, from a mapped file.
        build_beside_others()
        loaded = _build(folder, wanted) if device.is_cpu else _load(folder, wanted)
    except SafetensorError as error:
        raise LoadFailed(
            f"the weights in {folder} are damaged or incomplete; fetch the checkpoint again"
        ) from error
    module, report = cast("tuple[PreTrainedModel, Mapping[str, Any]]", loaded)
    _refuse_gaps(folder, report)
    return cast("PreTrainedModel", module.to(device.torch))  # pyright: ignore[reportArgumentType]


def _load(folder: Path, wanted: Mapping[str, Any]) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **wanted)


def _build(folder: Path, wanted: Mapping[str, Any]) -> Any:
    """As :func:`_load`, around tensors that this process has for itself."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not isinstance(config, kind.config_class):  # the language model within a larger one
        config = config.get_text_config()
    loaded = kind.from_pretrained(None, config=config, state_dict=read_checkpoint(folder), **wanted)
    if (folder / "generation_config.json").is_file():
        loaded[0].generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return loaded


def _refuse_gaps(folder: Path, report: Mapping[str, Any]) -> None:
    """Raises LoadFailed when weights were missing: transformers fills them with random numbers."""
    missing = sorted({*map(str, report["missing_keys"]), *(str(key[0]) for key in report["mismatched_keys"])})
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise LoadFailed(
            f"the checkpoint in {folder} lacks, or has in another shape, {', '.join(missing[:3])}{more}; "
            "fetch it again, or mend its config.json",
            reason="INCOMPLETE_CHECKPOINT",
        )


def check_configuration(folder: Path) -> None:
    """Raises LoadFailed for a checkpoint that no weight needs to be read of to know that it cannot serve."""
    try:
        config: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, named = config.get("model_type"), config.get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise LoadFailed(f"{folder / 'config.json'} cannot be read as a model's configuration") from error
    # With code of its own a checkpoint may still name an architecture that transformers has itself.
    if "auto_map" in config and kind not in CONFIG_MAPPING:
        raise LoadFailed(
            f"the architecture {kind!r} comes as code inside the checkpoint, which is never run; "
            "use a checkpoint of an architecture that transformers itself has"
        )
    # Encoders that can also be built as decoders would be served without the head they never had.
    encodes = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder", False)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or encodes or config.get("is_encoder_decoder", False):
        raise LoadFailed(
            f"{', '.join(map(str, named)) or kind!r} in {folder} is no decoder that predicts the next token, "
            "which is all that is served; use a checkpoint for causal language modelling",
            reason="NOT_A_DECODER",
        )
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise LoadFailed(
            f"{folder} holds no tokenizer; copy tokenizer.json and tokenizer_config.json from where the model "
            "comes from",
            reason="NO_TOKENIZER",
        )


def prepare(
    name: str,
    revision: str,
    module: PreTrainedModel,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    device: Device,
    report: Report,
    prices: Prices | None = None,
) -> LoadedModel:
    """Verifies, warms up and measures a module that is on its device; ``tokenizer`` may block."""
    module.eval()
    module.requires_grad_(False)
    report("verify", 0.7)
    with device.entered(), device.turn:
        device.synchronize()
        model = _inspect(module)
        report("warm up", 0.9)
        price = (prices or Prices()).of(model, device, revision)
    card = Card(
        name=name,
        revision=revision,
        dtype=dtype_name(module.dtype),
        anatomy=model.anatomy,
        end_tokens=end_tokens(module),
        tokens=Tokens(tokenizer(), model.anatomy.context_length),
    )
    return LoadedModel(
        card=card,
        model=model,
        device=device,
        resident_bytes=occupied_bytes(module),
        parameters=sum(p.numel() for p in module.parameters()),
        price=price,
    )


def end_tokens(module: PreTrainedModel) -> frozenset[int]:
    """What ends a text, as the checkpoint's generation configuration says, else its configuration."""
    for config in (module.generation_config, module.config.get_text_config()):
        ends: Any = getattr(config, "eos_token_id", None)
        if ends is not None:
            return frozenset(ends if isinstance(ends, list) else [ends])
    return frozenset()


def _inspect(module: PreTrainedModel) -> InspectedModel:
    """The inspected module. Raises LoadFailed, for weights that are no numbers with their name."""
    try:
        return inspect_model(module)
    except LoadFailed as refused:
        # Looked for only now: reading every weight takes longer than the inspection.
        for name, weight in module.named_parameters():
            if weight.is_floating_point() and not bool(weight.isfinite().all()):
                raise LoadFailed(
                    f"weight {name} holds values that are infinite or not a number; fetch the checkpoint again, or "
                    "load it in the dtype it was trained in",
                    reason="WEIGHTS_NOT_FINITE",
                ) from refused
        raise


def occupied_bytes(module: PreTrainedModel) -> int:
    """Bytes of all parameters and buffers, tied ones once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(storages.values())
