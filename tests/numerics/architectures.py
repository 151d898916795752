"""Where each architecture keeps its parts: what the oracle knows by name and the product must find."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """Where an architecture keeps its parts; block-relative names have no leading dot."""

    blocks: str = "model.layers"
    embed: str = "model.embed_tokens"
    positions: str | None = None
    embed_norm: str | None = None
    final_norm: str = "model.norm"
    attn_out: str = "self_attn.o_proj"
    mlp_out: str | None = "mlp.down_proj"
    attn_norm: str | None = None
    mlp_norm: str | None = None
    centred: bool = False
    one_plus: bool = False


_GPT2 = Names(
    "transformer.h", "transformer.wte", "transformer.wpe", None, "transformer.ln_f", "attn.c_proj", "mlp.c_proj",
    centred=True,
)  # fmt: skip
_FALCON = Names(
    "transformer.h", "transformer.word_embeddings", None, None, "transformer.ln_f",
    "self_attention.dense", "mlp.dense_4h_to_h", centred=True,
)  # fmt: skip
_GEMMA = Names(attn_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm", one_plus=True)
_EXPERTS = Names(mlp_out=None)
NAMES: dict[str, Names] = {
    "gpt2": _GPT2,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "granite"), Names()),
    **dict.fromkeys(("gemma2", "gemma3"), _GEMMA),
    "gpt_neox": Names(
        "gpt_neox.layers", "gpt_neox.embed_in", None, None, "gpt_neox.final_layer_norm",
        "attention.dense", "mlp.dense_4h_to_h", centred=True,
    ),
    "phi": Names(final_norm="model.final_layernorm", attn_out="self_attn.dense", mlp_out="mlp.fc2", centred=True),
    "opt": Names(
        "model.decoder.layers", "model.decoder.embed_tokens", "model.decoder.embed_positions", None,
        "model.decoder.final_layer_norm", "self_attn.out_proj", "fc2", centred=True,
    ),
    "bloom": Names(
        "transformer.h", "transformer.word_embeddings", None, "transformer.word_embeddings_layernorm",
        "transformer.ln_f", "self_attention.dense", "mlp.dense_4h_to_h", centred=True,
    ),
    **dict.fromkeys(("falcon", "falcon_new"), _FALCON),
    **dict.fromkeys(("mixtral", "olmoe", "qwen3_moe"), _EXPERTS),
    "olmo2": Names(attn_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"),
    **dict.fromkeys(("cohere", "stablelm"), Names(centred=True)),
    "gptj": Names(
        "transformer.h", "transformer.wte", None, None, "transformer.ln_f", "attn.out_proj", "mlp.fc_out",
        centred=True,
    ),
}  # fmt: skip
