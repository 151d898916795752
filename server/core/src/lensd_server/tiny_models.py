"""Tiny seeded models of real architectures, and a tokenizer for them, built in memory.

Tests and the conformance suite run the true transformers classes at toy sizes: every norm gain,
bias, soft-cap and multiplier is off its neutral value, so that ignoring one changes the numbers.
One name always gives the same weights.
"""

import zlib
from collections.abc import Callable
from typing import Any, cast

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB_SIZE = 384
CONTEXT_LENGTH = 128
N_LAYERS = 3
D_MODEL = 64
N_HEADS = 4

BOS, EOS, PAD = 0, 1, 2
_SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>")

_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)

_CORPUS = (
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Japan is Tokyo.",
    "When Mary and John went to the store, John gave a drink to Mary. Then Mary gave it to John.",
    "One, two, three, four, five, six, seven, eight, nine, ten. The sum of one and two is three.",
    "The model reads a token and writes a little to the residual stream, layer after layer.",
    "A head looks back at the words it needs and copies what they say to where it is asked.",
    "She said that he had been there before, but nobody could remember when it was or with whom.",
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of :data:`VOCAB_SIZE` tokens, with a chat template.

    Any text round-trips; it adds no special tokens of its own.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True) for token in _SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_CORPUS, trainer)
    bos, eos, pad = _SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


_USUAL = {
    "hidden_size": D_MODEL,
    "intermediate_size": 96,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": CONTEXT_LENGTH,
}
_GROUPED = {**_USUAL, "num_key_value_heads": 2}
#: head_dim * n_heads differs from d_model, as in the real models.
_WIDE_HEADS = {**_GROUPED, "head_dim": 24}

# name -> (model_type of transformers, arguments of its configuration). Windows are shorter and
# caps lower than in the real models, so that a short test text runs into them.
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "gpt2",
        {"n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": CONTEXT_LENGTH},
    ),
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": 8}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", _WIDE_HEADS),
    "gemma2": (
        "gemma2",
        {
            **_WIDE_HEADS,
            "sliding_window": 8,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **_WIDE_HEADS,
            "sliding_window": 8,
            "query_pre_attn_scalar": 20,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gpt_neox": ("gpt_neox", {**_USUAL, "rotary_pct": 0.5}),
    "phi": ("phi", {**_USUAL, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", _GROUPED),
    "opt": (
        "opt",
        {
            "hidden_size": D_MODEL,
            "word_embed_proj_dim": D_MODEL,
            "ffn_dim": 96,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": N_HEADS,
            "max_position_embeddings": CONTEXT_LENGTH,
        },
    ),
    "bloom": ("bloom", {"hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS}),
    "falcon": (
        "falcon",
        {
            **_USUAL,
            "multi_query": True,
            "parallel_attn": True,
            "new_decoder_architecture": False,
            "alibi": False,
            "bias": True,
            "ffn_hidden_size": 96,
        },
    ),
    "falcon_new": (
        "falcon",
        {
            **_USUAL,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "alibi": False,
            "bias": False,
            "ffn_hidden_size": 96,
        },
    ),
    "mixtral": ("mixtral", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": ("olmoe", {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            **_WIDE_HEADS,
            "moe_intermediate_size": 40,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
    ),
    "olmo2": ("olmo2", _GROUPED),
    "cohere": ("cohere", {**_GROUPED, "logit_scale": 0.25}),
    "granite": (
        "granite",
        {
            **_GROUPED,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
            "logits_scaling": 4.0,
        },
    ),
    "gptj": (
        "gptj",
        {
            "n_embd": D_MODEL,
            "n_layer": N_LAYERS,
            "n_head": N_HEADS,
            "n_positions": CONTEXT_LENGTH,
            "rotary_dim": 8,
        },
    ),
    "stablelm": ("stablelm", {**_GROUPED, "partial_rotary_factor": 0.5}),
}


def tiny_model(name: str) -> PreTrainedModel:
    """The tiny model called ``name`` (a key of :data:`TINY`) in fp32 on the CPU, in eval mode."""
    model_type, arguments = _CONFIGS[name]
    configuration = cast("Callable[..., PreTrainedConfig]", CONFIG_MAPPING[model_type])
    config = configuration(
        vocab_size=VOCAB_SIZE, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, **arguments
    )
    # Building a model draws from the global generator; leave that as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _disturb(model)
    return model.eval()


def _disturb(model: PreTrainedModel) -> None:
    """Moves every parameter off its neutral value, at scales that keep activations near one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                # A gain stays around its own centre (one, or zero where the gain is 1 + w).
                scale = 0.2 if name.endswith("bias") else 0.3
                parameter.add_(torch.randn_like(parameter), alpha=scale)
            elif "embed" in name or "wte" in name or "wpe" in name:
                parameter.normal_(std=0.3)
            else:
                parameter.normal_(std=1.5 / D_MODEL**0.5)


def _builder(name: str) -> Callable[[], PreTrainedModel]:
    return lambda: tiny_model(name)


#: Builders by name; each call gives a fresh model with the same weights.
TINY: dict[str, Callable[[], PreTrainedModel]] = {name: _builder(name) for name in _CONFIGS}
