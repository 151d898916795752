"""What callers may ask of fitting a probe and of reading with it."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lensd_api import BaseParams
from lensd_api.artifacts import NAME_PATTERN
from lensd_vsa_probe.placing import Place
from lensd_vsa_probe.pooling import Pooling
from lensd_vsa_probe.query import Rule
from lensd_vsa_probe.schedule import Schedule
from lensd_vsa_probe.splits import Split

Word = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
WordPair = tuple[Word, Word]
Prompt = Annotated[str, Field(min_length=1, max_length=20_000)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]

DEFAULT_TEMPLATE = "{a} : {b} = {c} :"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AnnotatedTextParams(_Part):
    """A text and the concepts it holds: ``pairs`` bound, the last one asked for; ``features`` loose."""

    text: Prompt
    features: tuple[Word, ...] = Field(default=(), max_length=256)
    pairs: tuple[WordPair, ...] = Field(default=(), max_length=64)

    @model_validator(mode="after")
    def _hold_something(self) -> Self:
        if not (self.features or self.pairs):
            raise ValueError("give features, pairs or both: a text without concepts encodes nothing")
        return self


class ItemsParams(_Part):
    """The concepts that a prompt names."""

    example_key: Word | None = None
    example_value: Word | None = None
    key: Word

    def named(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(word for word in (self.example_key, self.example_value, self.key) if word is not None)


class FitParams(BaseParams):
    """Exactly one of ``analogies``, ``texts`` and ``corpus`` is given."""

    artifact: str = Field(pattern=f"^{NAME_PATTERN}$", description="Name to store the probe under.")
    analogies: tuple[tuple[Word, Word, Word, Word], ...] | None = Field(
        default=None, max_length=200_000, description="Rows A, B, C, D of A : B = C : D."
    )
    texts: tuple[AnnotatedTextParams, ...] | None = Field(
        default=None, max_length=200_000, description="Texts with the concepts they hold."
    )
    corpus: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,150}$",
        description="`facts`, the corpus that comes with the plugin, one of its relations (`facts-currency`), "
        "or the artifact of a probe whose corpus is used again.",
    )
    rows: int | None = Field(
        default=None, ge=10, description="Use that many rows of the corpus, drawn by `seed`; all by default."
    )
    template: str = Field(
        default=DEFAULT_TEMPLATE, max_length=2000, description="Text of an analogy, with {a}, {b} and {c}."
    )
    other_template: str = Field(
        default="{a} is to {b} as {c} is to",
        max_length=2000,
        description="Another wording, on which `full` evaluates the probe without training on it.",
    )
    evaluation: Literal["basic", "full"] = Field(
        default="basic",
        description="`basic`: row and combination split, constant, permuted states, linear map, the model's "
        "own next token. `full`: also shuffled targets, layer 0, example pairs and another template.",
    )
    split: Split = Field(
        default="rows", description="How the stored probe's test rows are held out; `rows` leaks every pair."
    )
    test_share: float = Field(default=0.1, gt=0, le=0.5, description="Share of rows held out for testing.")
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Blocks after which the stream is read; by default from the middle of the model on.",
    )
    pooling: Pooling = Field(default="kmeans_sum", description="What is made of the layers' vectors.")
    k: int = Field(default=5, ge=1, le=64, description="Clusters of `kmeans_sum`.")
    dim: int = Field(default=1024, ge=64, le=16_384, description="D, the length of a hypervector.")
    width: int | None = Field(
        default=None, ge=8, le=16_384, description="Width of the encoder; D by default."
    )
    epochs: int = Field(default=60, ge=1, le=100_000, description="Epochs at most.")
    control_epochs: int | None = Field(
        default=None, ge=1, le=100_000, description="Epochs of each control; a third of `epochs` by default."
    )
    batch: int = Field(default=256, ge=2, le=65_536, description="Rows of one training step.")
    learning_rate: float = Field(default=2e-3, gt=0, le=1, description="Peak of the schedule.")
    weight_decay: float = Field(default=1e-4, ge=0, le=1, description="Of AdamW.")
    dropout: float = Field(default=0.2, ge=0, lt=1, description="Share of hidden values dropped in training.")
    schedule: Schedule = Field(
        default="one_cycle", description="`one_cycle`, or the paper's `warm_restarts`."
    )
    patience: int | None = Field(
        default=None, ge=1, description="Epochs without a better validation loss after which training stops."
    )
    rows_at_once: int = Field(
        default=48, ge=1, le=1024, description="Texts in one forward at most: fewer let others in sooner."
    )
    device: Place = Field(
        default="auto",
        description="Where encoders are trained: `model`, the model's device, within its memory budget; `cpu`; "
        "`auto`, the model's device if there is room for it, else the CPU, with a warning.",
    )
    seed: Seed = Field(default=0, description="Of the codebook, the splits, k-means and training.")
    reuse: bool = Field(
        default=False,
        description="Answer with the stored probe if it was fitted on this model with these parameters.",
    )

    @property
    def corpus_field(self) -> str:
        """The field that the corpus comes from."""
        return self._corpus_fields()[0]

    def _corpus_fields(self) -> list[str]:
        return [name for name in ("analogies", "texts", "corpus") if getattr(self, name) is not None]

    @model_validator(mode="after")
    def _one_corpus(self) -> Self:
        given = self._corpus_fields()
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of analogies, texts and corpus, not {', '.join(given) or 'none'}"
            )
        return self


class ProbeParams(BaseParams):
    """Which probe, on which texts, asked how."""

    artifact: str = Field(
        pattern=rf"^{NAME_PATTERN}(@\d+)?$", description="A fitted probe: its name, or name@version."
    )
    prompts: tuple[Prompt, ...] = Field(
        min_length=1, max_length=1024, description="Texts to read, used as they are; each is an item."
    )
    items: tuple[ItemsParams, ...] | None = Field(
        default=None,
        description="Per prompt the concepts it names; read from the template's places when absent.",
    )
    query: Rule = Field(
        default="key",
        description="`key` and `best` know no answer; `oracle` chooses by `targets`, for comparison only.",
    )
    targets: tuple[Word, ...] | None = Field(
        default=None, description="Per prompt the concept expected: marked in the table, needed by `oracle`."
    )
    top_k: int = Field(default=10, ge=1, le=1000, description="Concepts listed.")
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Cosine from which a concept is extracted; 6.4/sqrt(D) by default, 0.1 at D = 4096.",
    )
    generate: int = Field(
        default=0, ge=0, le=64, description="Tokens to let the model say, after which it is read again."
    )

    @model_validator(mode="after")
    def _one_per_prompt(self) -> Self:
        for name in ("items", "targets"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.prompts):
                raise ValueError(f"{name}: {len(given)} for {len(self.prompts)} prompts; give one each")
        if self.query == "oracle" and self.targets is None:
            raise ValueError("query 'oracle' chooses by the answer: give targets")
        return self
