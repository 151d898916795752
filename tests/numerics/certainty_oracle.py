"""Self-certainty the naive way: the whole model and all logits in fp64, offsets by the tokenizer itself."""

import json
from math import log
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class NaiveCertainty:
    """Nothing here is shared with the analyzer but the formulas of the papers."""

    def __init__(self, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._module = module.double()
        self._tokenizer = tokenizer

    def of(self, context: str, output: str) -> dict[str, float]:
        """Every mode, averaged over the rationale's tokens, and their log-probabilities' sum."""
        tokens, offsets = self._encoded(output)
        before = self._tokenizer.encode(context)
        raw = json.dumps(json.loads(output)["rationale"], ensure_ascii=False)[1:-1]
        start = output.index(raw)
        own = [i for i, (a, b) in enumerate(offsets) if a < start + len(raw) and b > start]
        with torch.inference_mode():
            logits = self._module(torch.tensor([before + tokens])).logits[0]
        assert logits.dtype is torch.float64
        size = logits.shape[-1]
        found: dict[str, list[float]] = {"kl_u_p": [], "kl_p_u": [], "as_printed": [], "logprob": []}
        for i in own:
            p = logits[len(before) + i - 1].softmax(-1)
            found["kl_u_p"].append(-float((size * p).log().sum()) / size)
            found["kl_p_u"].append(float((p * (size * p).log()).sum()))
            found["as_printed"].append(float((p * (p * size).log()).sum()) / size)
            found["logprob"].append(log(float(p[tokens[i]])))
        means = {name: sum(values) / len(values) for name, values in found.items()}
        return means | {"tokens": len(own), "first": own[0]}

    def _encoded(self, output: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded: Any = self._tokenizer(output, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]
