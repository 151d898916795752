"""Other ways to the numbers of a reward: one forward a sample, and batches as TRL runs them."""

from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lensd_server.engine.device import set_cpu_threads
from tests.bench.rollouts import Rollout

#: TRL's default batch of a device.
BATCH = 8


class Transformers:
    """The model as transformers runs it, in this process."""

    def __init__(self, folder: Path) -> None:
        set_cpu_threads()
        transformers.utils.logging.disable_progress_bar()
        self._module: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def tokens(self, rollout: Rollout) -> tuple[int, int]:
        """Tokens of context and output, and of the rationale."""
        before, after = self._encode(rollout.context), self._encode(rollout.output)
        return len(before) + len(after), len(self._rationale(rollout))

    @torch.inference_mode()
    def one_by_one(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Self-certainty (kl_u_p) of each rationale by one forward a sample, the way it is written first."""
        found: list[float] = []
        for rollout in rollouts:
            before = self._encode(rollout.context)
            ids = torch.tensor([before + self._encode(rollout.output)])
            logs = self._module(ids, use_cache=False).logits[0].float().log_softmax(-1)
            own = logs[[len(before) + i - 1 for i in self._rationale(rollout)]]
            found.append(float(-own.mean() - log(logs.shape[-1])))
        return found

    @torch.inference_mode()
    def in_batches(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """Log-probabilities of each output's tokens as TRL's GRPOTrainer computes them: prompts padded
        on the left, completions on the right, logits of the completions only, row by row log-softmax."""
        found: list[Tensor] = []
        for start in range(0, len(rollouts), BATCH):
            part = rollouts[start : start + BATCH]
            prompts = [torch.tensor(self._encode(r.context)) for r in part]
            completions = [torch.tensor(self._encode(r.output)) for r in part]
            ids = torch.cat([_pad(prompts, left=True), _pad(completions, left=False)], 1)
            ones = [[torch.ones_like(t) for t in texts] for texts in (prompts, completions)]
            mask = torch.cat([_pad(ones[0], left=True), _pad(ones[1], left=False)], 1)
            keep = max(map(len, completions))
            logits = self._module(ids, attention_mask=mask, use_cache=False, logits_to_keep=keep + 1).logits
            for row, completion in zip(logits[:, :-1], completions, strict=True):
                chosen = row[: len(completion)].gather(-1, completion.unsqueeze(-1)).squeeze(-1)
                found.append(chosen - row[: len(completion)].logsumexp(-1))
        return found

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _rationale(self, rollout: Rollout) -> list[int]:
        start = rollout.output.index(rollout.rationale)
        end = start + len(rollout.rationale)
        encoded = self._tokenizer(rollout.output, add_special_tokens=False, return_offsets_mapping=True)
        return [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start]


def _pad(rows: Sequence[Tensor], *, left: bool) -> Tensor:
    side = "left" if left else "right"
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_side=side)
