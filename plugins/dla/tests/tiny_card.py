"""A model card without a model: the tiny tokenizer and sizes to go with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lensd_api import Anatomy, InvalidParams, LayerAnatomy, NormAnatomy, Unit
from lensd_server.tiny_models import tiny_tokenizer


def anatomy(*layers: frozenset[Unit], **sizes: Any) -> Anatomy:
    """Sizes of the tiny models, one layer per set of units."""
    values: dict[str, Any] = {
        "architecture": "tiny", "n_layers": len(layers), "d_model": 64, "n_heads": 4, "n_kv_heads": 2,
        "head_dim": 16, "d_mlp": 96, "n_experts": 0, "vocab_size": 384, "context_length": 128,
        "layers": tuple(LayerAnatomy(units) for units in layers),
        "final_norm": NormAnatomy(centre=False, gain="w", has_bias=False, eps=1e-5, max_error=1e-7),
    }  # fmt: skip
    return Anatomy(**(values | sizes))


@dataclass
class TinyCard:
    """A ModelCard."""

    anatomy: Anatomy = field(default_factory=lambda: anatomy(*[frozenset(Unit)] * 3))
    name: str = "tiny"
    revision: str = "0"
    dtype: str = "float32"
    tokenizer: Any = field(default_factory=tiny_tokenizer)

    def encode(self, text: str, *, special_tokens: bool = True, field: str = "prompt") -> tuple[int, ...]:
        tokens = tuple(self.tokenizer.encode(text, add_special_tokens=special_tokens))
        if not 0 < len(tokens) <= self.anatomy.context_length:
            raise InvalidParams.field(field, f"{len(tokens)} tokens")
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens)))

    def token_text(self, token: int) -> str:
        return self.decode([token])

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, field: str = "messages"
    ) -> tuple[int, ...]:
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return self.encode(str(text), special_tokens=False, field=field)
