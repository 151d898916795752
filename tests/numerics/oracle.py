"""What every row should be, calculated apart from the product: in fp64, by pushing vectors forward.

The product pulls a direction back through frozen norms and finds the parts of a model by
structure. Here the model runs in fp64 with plain hooks on modules known by name, each write is
made as a residual vector, pushed through the frozen norms and dotted with the direction at
the very end. The writes are checked to add up to the stream before anything is compared with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.numerics.architectures import NAMES

#: Name and layer and index of a row, as the analyzer names them.
Key = tuple[str, int | None, int | None]


@dataclass(frozen=True)
class Affine:
    """A norm with its statistics frozen at ``seen`` [pos, d_model]."""

    module: nn.Module
    seen: Tensor
    centred: bool
    one_plus: bool

    @property
    def gain(self) -> Tensor:
        return self.module.weight.detach() + (1.0 if self.one_plus else 0.0)  # type: ignore[operator]

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach()

    def scale(self, x: Tensor) -> Tensor:
        eps = next(
            getattr(self.module, name) for name in ("eps", "variance_epsilon") if hasattr(self.module, name)
        )
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return 1.0 / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)

    def linear(self, vectors: Tensor, at: Tensor | None = None) -> Tensor:
        """``vectors`` [pos, ..., d_model] pushed through, bias apart; statistics of ``at``."""
        scale = self.scale(self.seen if at is None else at)
        while scale.ndim < vectors.ndim:
            scale = scale.unsqueeze(1)
        centred = vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors
        return centred * scale * self.gain


@dataclass
class Layer:
    """What was seen in one block."""

    block_in: Tensor
    block_out: Tensor
    heads: Tensor  # [pos, head, head_dim]
    neurons: Tensor | None  # [pos, d_mlp]
    attention: Tensor | None  # [head, pos, src]
    values: Tensor | None  # [src, head, head_dim]
    experts: dict[int, Tensor] = field(default_factory=dict)  # expert -> [pos, d_model]


class Oracle:
    """One model on one row of tokens."""

    def __init__(self, name: str, model: PreTrainedModel, tokens: tuple[int, ...]) -> None:
        self.name, self.names = name, NAMES[name]
        self.model = model.double()
        # Falcon, Bloom and GPT-J have attention of their own; Falcon even forgets the causal mask when
        # it is asked for its weights.
        self.shows_attention = name not in ("falcon", "falcon_new", "bloom", "gptj")
        if self.shows_attention:
            self.model.set_attn_implementation("eager")
        if self.names.mlp_out is None:
            self.model.set_experts_implementation("eager")  # the usual one knows no fp64
        self.config = self.model.config
        self.n_heads: int = self.config.num_attention_heads
        self._run(tokens)
        self._check()

    # -- what the model did ----------------------------------------------------------------

    @torch.no_grad()
    def _run(self, tokens: tuple[int, ...]) -> None:
        names = self.names
        blocks = list(self.model.get_submodule(names.blocks))  # type: ignore[arg-type]
        inputs: dict[nn.Module, Tensor] = {}
        outputs: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = args[0] if args else kwargs.get("hidden_states", kwargs.get("input_ids"))
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(given, Tensor):
                inputs[module] = given.detach().clone()
            if isinstance(first, Tensor):
                outputs[module] = first.detach().clone()

        handles = [m.register_forward_hook(keep, with_kwargs=True) for m in self.model.modules()]
        ids = torch.tensor([tokens])
        try:
            result = self.model(ids, output_attentions=self.shows_attention, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        self.tokens = ids[0]
        self.logits = result.logits[0].double()
        head = self.model.get_output_embeddings()
        self.raw_logits = outputs[head][0].double()  # type: ignore[index]
        self.unembed = head.weight.detach()  # type: ignore[union-attr]
        bias = getattr(head, "bias", None)
        self.unembed_bias: Tensor | None = None if bias is None else bias.detach()
        final = self.model.get_submodule(names.final_norm)
        self.residual = inputs[final][0]
        self.norm = Affine(final, self.residual, names.centred, names.one_plus)
        self.embed, self.pos_embed = self._embeddings(outputs)
        self.layers = [
            self._layer(block, inputs, outputs, result.attentions[i][0] if self.shows_attention else None)
            for i, block in enumerate(blocks)
        ]
        self.blocks = blocks
        self.inputs, self.outputs = inputs, outputs

    def _embeddings(self, outputs: dict[nn.Module, Tensor]) -> tuple[Tensor, Tensor | None]:
        names = self.names
        embed = self.model.get_submodule(names.embed).weight.detach()[self.tokens]  # type: ignore[index]
        if self.name.startswith("gemma"):
            embed = embed * sqrt(self.config.hidden_size)
        embed = embed * getattr(self.config, "embedding_multiplier", 1.0)
        if names.embed_norm is not None:
            embed = outputs[self.model.get_submodule(names.embed_norm)][0]
        if names.positions is None:
            return embed, None
        offset = 2 if self.name == "opt" else 0
        table = self.model.get_submodule(names.positions).weight.detach()  # type: ignore[union-attr]
        return embed, table[torch.arange(len(self.tokens)) + offset]  # type: ignore[index]

    def _layer(
        self,
        block: nn.Module,
        inputs: dict[nn.Module, Tensor],
        outputs: dict[nn.Module, Tensor],
        weights: Tensor | None,
    ) -> Layer:
        out = block.get_submodule(self.names.attn_out)
        heads = inputs[out].reshape(len(self.tokens), self.n_heads, -1)
        neurons = None
        if self.names.mlp_out is not None:
            neurons = inputs[block.get_submodule(self.names.mlp_out)].reshape(len(self.tokens), -1)
        layer = Layer(
            inputs[block][0],
            outputs[block][0],
            heads,
            neurons,
            None if weights is None else weights.double(),
            self._values(block, outputs, heads.shape[2]),
        )
        if self.names.mlp_out is None:
            layer.experts = self._experts(block, inputs)
        return layer

    def _values(self, block: nn.Module, outputs: dict[nn.Module, Tensor], head_dim: int) -> Tensor | None:
        """[src, head, head_dim], one a query head, for architectures whose layout is known here."""
        length = len(self.tokens)
        if self.name == "gpt2":
            return (
                outputs[block.get_submodule("attn.c_attn")][0].chunk(3, -1)[2].view(length, self.n_heads, -1)
            )
        if self.name == "gpt_neox":
            fused = outputs[block.get_submodule("attention.query_key_value")][0]
            return fused.view(length, self.n_heads, 3, head_dim)[:, :, 2]
        if self.name == "phi3":
            fused = outputs[block.get_submodule("self_attn.qkv_proj")][0]
            flat = fused[:, -self.config.num_key_value_heads * head_dim :]
        elif hasattr(getattr(block, "self_attn", None), "v_proj"):
            flat = outputs[block.get_submodule("self_attn.v_proj")][0]
        else:
            return None
        few = flat.view(length, -1, head_dim)
        return few.repeat_interleave(self.n_heads // few.shape[1], dim=1)

    def _experts(self, block: nn.Module, inputs: dict[nn.Module, Tensor]) -> dict[int, Tensor]:
        """Each expert's weighted output where it is routed to, zero elsewhere, from the weights alone."""
        mlp = block.get_submodule("mlp")
        x = inputs[mlp].reshape(len(self.tokens), -1)
        routing = (x @ mlp.gate.weight.T).softmax(-1)  # type: ignore[union-attr, operator]
        weights, chosen = routing.topk(self.config.num_experts_per_tok, dim=-1)
        if self.name == "mixtral" or getattr(self.config, "norm_topk_prob", False):
            weights = weights / weights.sum(-1, keepdim=True)
        experts: Any = mlp.experts  # type: ignore[union-attr]
        written: dict[int, Tensor] = {}
        for expert in range(experts.down_proj.shape[0]):
            gate, up = (x @ experts.gate_up_proj[expert].T).chunk(2, -1)
            output = (nn.functional.silu(gate) * up) @ experts.down_proj[expert].T
            share = (weights * (chosen == expert)).sum(-1, keepdim=True)
            if bool((share > 0).any()):
                written[expert] = share * output
        return written

    # -- writes as residual vectors -----------------------------------------------------------

    def _weight(self, projection: nn.Module) -> Tensor:
        """[n_in, d_model]; GPT-2 keeps it that way round, the others transposed."""
        weight: Tensor = projection.weight.detach()  # type: ignore[union-attr, operator]
        return weight if self.name == "gpt2" else weight.T

    def _push(self, number: int, part: str, raw: Tensor) -> Tensor:
        """Terms of a projection's output [pos, n, d_model] as they reach the stream, bias of a norm apart."""
        norm_name = self.names.attn_norm if part == "attn" else self.names.mlp_norm
        if norm_name is not None:
            module = self.blocks[number].get_submodule(norm_name)
            raw = Affine(module, self.inputs[module][0], False, self.names.one_plus).linear(raw)
        return raw * getattr(self.config, "residual_multiplier", 1.0)

    def head_writes(self, number: int) -> Tensor:
        """[pos, head, d_model]."""
        heads = self.layers[number].heads
        weight = self._weight(self.blocks[number].get_submodule(self.names.attn_out))
        by_head = weight.reshape(self.n_heads, -1, weight.shape[1])
        return self._push(number, "attn", torch.einsum("phe,hed->phd", heads, by_head))

    def source_writes(self, number: int, position: int) -> Tensor:
        """[head, src, d_model] at one position."""
        layer = self.layers[number]
        assert layer.values is not None
        assert layer.attention is not None
        weight = self._weight(self.blocks[number].get_submodule(self.names.attn_out))
        moved = layer.attention[:, position, :, None] * layer.values.transpose(0, 1)
        raw = torch.einsum("hse,hed->hsd", moved, weight.reshape(self.n_heads, -1, weight.shape[1]))
        every = raw.new_zeros(len(self.tokens), *raw.shape)
        every[position] = raw
        return self._push(number, "attn", every)[position]

    def neuron_writes(self, number: int) -> Tensor:
        """[pos, neuron, d_model]."""
        neurons = self.layers[number].neurons
        assert neurons is not None
        assert self.names.mlp_out is not None
        weight = self._weight(self.blocks[number].get_submodule(self.names.mlp_out))
        return self._push(number, "mlp", neurons[:, :, None] * weight)

    def bias_write(self, number: int, part: str) -> Tensor | None:
        """[pos, d_model]."""
        name = self.names.attn_out if part == "attn" else self.names.mlp_out
        if name is None:
            return None
        bias = getattr(self.blocks[number].get_submodule(name), "bias", None)
        if bias is None:
            return None
        return self._push(number, part, bias.detach().expand(len(self.tokens), 1, -1))[:, 0]

    def attn_write(self, number: int) -> Tensor:
        """[pos, d_model]."""
        bias = self.bias_write(number, "attn")
        return self.head_writes(number).sum(1) + (0.0 if bias is None else bias)

    def mlp_write(self, number: int) -> Tensor:
        """[pos, d_model]."""
        if self.names.mlp_out is None:
            return torch.stack(list(self.layers[number].experts.values())).sum(0)
        bias = self.bias_write(number, "mlp")
        return self.neuron_writes(number).sum(1) + (0.0 if bias is None else bias)

    def _check(self) -> None:
        """The writes add up to the stream, layer by layer and in all: the oracle's own proof."""
        entry = self.embed if self.pos_embed is None else self.embed + self.pos_embed
        limit = 1e-6 * float(self.residual.abs().max())
        for number, layer in enumerate(self.layers):
            assert (entry - layer.block_in).abs().max() < limit, f"{self.name}: stream into layer {number}"
            entry = entry + self.attn_write(number) + self.mlp_write(number)
            assert (entry - layer.block_out).abs().max() < limit, f"{self.name}: writes of layer {number}"
        assert (entry - self.residual).abs().max() < limit, f"{self.name}: final stream"

    # -- rows --------------------------------------------------------------------------------------

    def direction(self, target: int, contrast: int | None = None) -> Tensor:
        """[d_model]."""
        row = self.unembed[target]
        return row if contrast is None else row - self.unembed[contrast]

    def writes(self, unit: str) -> Iterator[tuple[Key, Tensor]]:
        """Every component of ``unit`` and what it writes [pos, d_model]."""
        yield ("embed", None, None), self.embed
        if self.pos_embed is not None:
            yield ("pos_embed", None, None), self.pos_embed
        for number, layer in enumerate(self.layers):
            if unit == "block":
                yield ("block", number, None), layer.block_out - layer.block_in
                continue
            yield from self._attention(number, unit)
            yield from self._mlp(number, unit)

    def _attention(self, number: int, unit: str) -> Iterator[tuple[Key, Tensor]]:
        if unit != "head":
            yield ("attn", number, None), self.attn_write(number)
            return
        for head, write in enumerate(self.head_writes(number).unbind(1)):
            yield ("head", number, head), write
        if (bias := self.bias_write(number, "attn")) is not None:
            yield ("attn_bias", number, None), bias

    def _mlp(self, number: int, unit: str) -> Iterator[tuple[Key, Tensor]]:
        if unit == "expert" and self.names.mlp_out is None:
            for expert, write in self.layers[number].experts.items():
                yield ("expert", number, expert), write
        elif unit == "neuron" and self.names.mlp_out is not None:
            for neuron, write in enumerate(self.neuron_writes(number).unbind(1)):
                yield ("neuron", number, neuron), write
            if (bias := self.bias_write(number, "mlp")) is not None:
                yield ("mlp_bias", number, None), bias
        else:
            yield ("mlp", number, None), self.mlp_write(number)

    def contribution(self, write: Tensor, direction: Tensor) -> Tensor:
        """[pos, ...] of a write [pos, ..., d_model] under the frozen final norm."""
        return self.norm.linear(write) @ direction

    def effect(self, write: Tensor, direction: Tensor) -> Tensor:
        """[pos]: the logit minus what it would be without ``write`` [pos, d_model], the norm recomputed."""
        without = self.residual - write
        return (self.norm.linear(self.residual) - self.norm.linear(without, at=without)) @ direction

    def constants(self, direction: Tensor, target: int, contrast: int | None) -> dict[Key, float]:
        """Rows that are the same at every position."""
        rows: dict[Key, float] = {}
        if self.norm.bias is not None:
            rows["norm_bias", None, None] = float(self.norm.bias @ direction)
        if self.unembed_bias is not None:
            other = 0.0 if contrast is None else float(self.unembed_bias[contrast])
            rows["unembed_bias", None, None] = float(self.unembed_bias[target]) - other
        return rows

    def lens(self, number: int) -> Tensor:
        """[pos, vocab]: logits of the stream after block ``number``, as the model returns them."""
        with torch.no_grad():
            normed = self.norm.linear(self.layers[number].block_out, at=self.layers[number].block_out)
            normed = normed if self.norm.bias is None else normed + self.norm.bias
            raw = normed @ self.unembed.T
            raw = raw if self.unembed_bias is None else raw + self.unembed_bias
        match self.name:
            case "gemma2":
                cap = self.config.final_logit_softcapping
                return cap * torch.tanh(raw / cap)
            case "cohere":
                return raw * self.config.logit_scale
            case "granite":
                return raw / self.config.logits_scaling
        return raw
