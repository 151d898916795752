"""How an analyzer sees a resident model.

``forward`` is the primitive: token rows go in, the asked activations at the asked positions
come out. The server decides when a row runs and which rows share a batch; a result never
depends on that. Inside a ``Reduce`` function, which runs on the model's device, the analyzer
also gets a :class:`ModelView`: the weights through which components write and read.
"""

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from lensd_api.anatomy import Anatomy, Site
from lensd_api.generation import Generated, NewToken, Sampling
from lensd_api.statistics import TokenStatistics

if TYPE_CHECKING:
    import torch
    from torch import Tensor

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

#: ``"all"``, or positions; negative ones count from the end of the row.
Positions = Literal["all"] | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to run.

    ``attention_mask`` (1 = seen) and ``position_ids`` have the length of ``tokens``. Removing
    a span means masking it *and* renumbering the positions after it.
    """

    tokens: tuple[int, ...]
    attention_mask: tuple[int, ...] | None = None
    position_ids: tuple[int, ...] | None = None


class Norm(Protocol):
    """A normalisation with its weights, as verified against the model's own module."""

    @property
    def centre(self) -> bool:
        """Whether the mean is subtracted."""
        ...

    @property
    def gain(self) -> "Tensor | None":
        """[d_model] multiplier, the 1 of ``1+w`` included."""
        ...

    @property
    def bias(self) -> "Tensor | None":
        """[d_model] added last."""
        ...

    def inverse_std(self, x: "Tensor") -> "Tensor":
        """The statistic that freezing keeps: ``x`` [..., d_model] -> [..., 1], in fp32 or wider."""
        ...


class Write(Protocol):
    """How a sub-layer writes: ``multiplier * post_norm(inputs @ weight + bias)``.

    ``post_norm`` is ``None`` for most architectures.
    """

    @property
    def weight(self) -> "Tensor":
        """[n_in, d_model]; for attention ``n_in = n_heads * head_dim``, heads in order."""
        ...

    @property
    def bias(self) -> "Tensor | None":
        """[d_model]."""
        ...

    @property
    def multiplier(self) -> float:
        """Residual multiplier (Granite)."""
        ...

    @property
    def post_norm(self) -> Norm | None:
        """Norm applied to the sum before it is added to the stream (Gemma 2 and 3, OLMo 2)."""
        ...


class ModelView(Protocol):
    """The weights that attribution needs, on the model's device. Read-only."""

    @property
    def anatomy(self) -> Anatomy:
        """Sizes and units."""
        ...

    @property
    def final_norm(self) -> Norm | None:
        """The norm before the output head."""
        ...

    @property
    def unembed(self) -> "Tensor":
        """[vocab, d_model]."""
        ...

    @property
    def unembed_bias(self) -> "Tensor | None":
        """[vocab]."""
        ...

    def attention_write(self, layer: int) -> Write:
        """How the attention of ``layer`` writes. Raises RequirementNotMet without HEAD."""
        ...

    def mlp_write(self, layer: int) -> Write:
        """How the dense MLP of ``layer`` writes. Raises RequirementNotMet without NEURON."""
        ...

    def logits(self, residual: "Tensor") -> "Tensor":
        """What the model would return for ``residual`` [n, d_model] before the final norm: [n, vocab]."""
        ...

    def upload(
        self, values: "Sequence[int] | Sequence[float] | Tensor", dtype: "torch.dtype | None" = None
    ) -> "Tensor":
        """``values``, positions or token ids for instance, as a tensor on the model's device.

        On a GPU the copy is queued behind the forward. ``torch.tensor(values, device=...)`` would wait for it, and
        so does indexing with a list.
        """
        ...

    def cached(self, key: str, build: "Callable[[], Tensor]") -> "Tensor":
        """A tensor derived from weights, built once and kept with the model, least recently used ones until
        they take a twentieth of what its weights do together; one larger than that is built every time.

        All plugins share the keys: begin yours with the name of your distribution. What is kept counts in
        ``lensd_model_kept_bytes``, and not in what an analysis estimates.
        """
        ...


@dataclass(frozen=True, slots=True)
class Stack:
    """Captures of all rows of one batch that named the same reduce, stacked along ``pos``.

    ``values[site]`` has the shape documented at :class:`Site` with ``pos`` running over the
    positions of all rows one after another: row ``i`` owns ``slice_of(i)``. VALUES, whose first
    axis is ``src``, is stacked likewise along ``src`` and sliced with ``src_slice_of``;
    ATTENTION is padded with zeros along ``src`` to the longest row.
    """

    values: "Mapping[Site, Tensor]"
    #: Per row: the ``args`` its Capture gave.
    args: Sequence[Any]
    #: Per row: the asked positions, all non-negative.
    positions: Sequence[tuple[int, ...]]
    #: Per row: its tokens.
    tokens: Sequence[tuple[int, ...]]
    #: Captured layers, ascending.
    layers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.args)

    def slice_of(self, row: int) -> slice:
        """Where the positions of ``row`` lie along ``pos``."""
        start = sum(len(p) for p in self.positions[:row])
        return slice(start, start + len(self.positions[row]))

    def src_slice_of(self, row: int) -> slice:
        """Where the source positions of ``row`` lie along ``src`` in VALUES."""
        start = sum(len(t) for t in self.tokens[:row])
        return slice(start, start + len(self.tokens[row]))


@dataclass(frozen=True)  # no slots: `Reduce[X](...)` could not be called then
class Reduce(Generic[R_co]):
    """What to make of captures on the device, once per batch.

    ``fn(stack, view)`` is a pure function that returns one value a row, in order. Rows of other
    requests that name the same ``fn`` (compared with ``==``: use a module-level function)
    and the same sites and layers are in the same call; ``args`` is this row's own. Tensors in
    the values are brought to host memory by the engine. It must not keep or change what it is given.
    """

    fn: "Callable[[Stack, ModelView], Sequence[R_co]]"
    args: Any = None


@dataclass(frozen=True)  # no slots, as for Reduce
class Capture(Generic[R_co]):
    """Which activations to keep, where, and what to make of them.

    ``layers`` ``None`` means all. Without ``reduce``, ``forward`` answers :class:`Activations`.
    """

    sites: frozenset[Site]
    positions: Positions = (-1,)
    layers: tuple[int, ...] | None = None
    reduce: Reduce[R_co] | None = None


@dataclass(frozen=True, slots=True)
class Activations:
    """Captures of one row in host memory, in the model's dtype; shapes as at :class:`Site`."""

    values: "Mapping[Site, Tensor]"
    positions: tuple[int, ...]
    layers: tuple[int, ...] = field(default=())

    def __getitem__(self, site: Site) -> "Tensor":
        return self.values[site]


class ModelCard(Protocol):
    """What is known of a model without running it."""

    @property
    def name(self) -> str:
        """The name it is served under."""
        ...

    @property
    def revision(self) -> str:
        """SHA-256 over weights, configuration and tokenizer."""
        ...

    @property
    def dtype(self) -> str:
        """Element type of the weights (``"float32"``)."""
        ...

    @property
    def anatomy(self) -> Anatomy:
        """Sizes and units."""
        ...

    def encode(self, text: str, *, special_tokens: bool = True, field: str = "prompt") -> tuple[int, ...]:
        """Token ids of ``text``.

        Raises InvalidParams, naming ``field``, when there are none or more than the context holds.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens included."""
        ...

    def token_text(self, token: int) -> str:
        """Text of one token as a reader would write it, with its leading space (``" Paris"``)."""
        ...

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, field: str = "messages"
    ) -> tuple[int, ...]:
        """Token ids of a conversation in the model's chat template, ready for the reply.

        Raises RequirementNotMet when the tokenizer has no template, InvalidParams when it is
        too long or the template refuses it.
        """
        ...


class ModelHandle(ModelCard, Protocol):
    """A resident model, leased for the duration of one analysis; for ``async`` analyzers."""

    async def forward(self, rows: Sequence[Row], capture: Capture[R]) -> list[R]:
        """Runs ``rows`` and returns one value a row, in order.

        The value is what ``capture.reduce`` makes of it, else :class:`Activations`. Raises
        InvalidRequest for an empty row, one longer than the context or token ids and positions
        out of range, RequirementNotMet for a site the model does not offer, DeviceOutOfMemory,
        Cancelled and DeadlineExceeded.
        """
        ...

    async def logprobs(self, rows: Sequence[Row]) -> "list[Tensor]":
        """Log-probability of each token given those before it: per row [len(tokens) - 1], fp32.

        Vocabulary-wide values never leave the device.
        """
        ...

    async def token_statistics(self, rows: Sequence[Row]) -> list[TokenStatistics]:
        """The same with entropy, log-normaliser and mean logit of each prediction, one value a row."""
        ...

    def generate(
        self, rows: Sequence[Row], sampling: Sampling = ..., capture: Capture[R] | None = None
    ) -> AsyncGenerator[NewToken | Generated[R], None]:
        """Lets the model write on after each row: every token as it comes, and of every row its end.

        Greedy unless ``sampling`` says otherwise; rows take part in batches one token at a time, next to
        whatever else runs, and what they write never depends on that. ``capture`` is taken of each row
        as it came and again with all it wrote; in :class:`Generated` the latter is ``None`` where a row
        that already filled the context had no room for its one token to be read. Leaving
        the iterator ends the generation. Raises what :meth:`forward` raises, InvalidRequest
        for impossible sampling too, and RequirementNotMet where logits cannot be read from the residual stream.
        """
        ...


class BlockingModelHandle(ModelCard, Protocol):
    """The same, for plain generators, which run on a worker thread."""

    def forward(self, rows: Sequence[Row], capture: Capture[R]) -> list[R]:
        """See :meth:`ModelHandle.forward`."""
        ...

    def logprobs(self, rows: Sequence[Row]) -> "list[Tensor]":
        """See :meth:`ModelHandle.logprobs`."""
        ...

    def token_statistics(self, rows: Sequence[Row]) -> list[TokenStatistics]:
        """See :meth:`ModelHandle.token_statistics`."""
        ...

    def generate(
        self, rows: Sequence[Row], sampling: Sampling = ..., capture: Capture[R] | None = None
    ) -> Generator[NewToken | Generated[R], None, None]:
        """See :meth:`ModelHandle.generate`."""
        ...
