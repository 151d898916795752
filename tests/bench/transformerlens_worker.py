"""Direct logit attribution by head with TransformerLens, for whoever drives it over a pipe.

Runs in an environment of its own, so it imports nothing of lensd. Usage: FOLDER THREADS, where the folder
holds the converted weights. Each line of standard input is a JSON object with ``rows`` of token ids and
``sparing``; each line of output has the seconds they took, one row after another, and what was found of
the last one: the parts of the top prediction's logit that each layer's heads write, and then the embedding
and each layer's MLP. A sparing run caches only what it needs, an ordinary one everything, as in most
notebooks.
"""

import json
import sys
import time
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Serves until its input ends."""
    folder, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    talk = sys.stdout
    sys.stdout = sys.stderr  # libraries print
    model = load(folder)
    for line in sys.stdin:
        asked = json.loads(line)
        rows = [torch.tensor([row]) for row in asked["rows"]]
        found: dict[str, Any] = {}
        start = time.perf_counter()
        for row in rows:
            found = attribute(model, row, sparing=asked["sparing"])
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, **found}), file=talk, flush=True)


def load(folder: str) -> Any:
    """The model as TransformerLens has it: norm gains folded into the weights, nothing centred, so that
    logits stay what the model says."""
    module: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = TransformerBridge.boot_transformers(
        folder, hf_model=module, tokenizer=tokenizer, device="cpu", dtype=torch.float32
    )
    model.enable_compatibility_mode(
        disable_warnings=True,
        fold_ln=True,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model


@torch.inference_mode()
def attribute(model: Any, tokens: torch.Tensor, *, sparing: bool) -> dict[str, Any]:
    """The usual way: run with cache, stack what heads and MLPs wrote, project onto the logit's direction."""
    wanted = _is_needed if sparing else None
    logits, cache = model.run_with_cache(tokens, names_filter=wanted)
    target = logits[0, -1].argmax()
    heads = cache.stack_head_results(layer=-1, pos_slice=-1, incl_remainder=False)
    others = cache.decompose_resid(layer=-1, mode="mlp", pos_slice=-1)
    stack = torch.cat([heads, others])
    parts = cache.logit_attrs(stack, tokens=target, pos_slice=-1)[:, 0]
    n_heads = heads.shape[0]
    return {
        "target": int(target),
        "logit": float(logits[0, -1, target]),
        "heads": parts[:n_heads].tolist(),
        "others": parts[n_heads:].tolist(),
    }


def _is_needed(name: str) -> bool:
    return name.endswith(("attn.hook_z", "hook_mlp_out", "ln_final.hook_scale")) or name == "hook_embed"


if __name__ == "__main__":
    main()
