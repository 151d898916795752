"""The analyzer ``vsa-probe``: named concepts in a model's state, for any prompt."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import torch

from lensd_api import (
    Analyzer,
    Context,
    Cost,
    Example,
    FailedPrecondition,
    Generated,
    InvalidParams,
    InvalidRequest,
    ItemError,
    ModelCard,
    Requirements,
    Result,
    ResultSpec,
    Row,
    Sampling,
)
from lensd_vsa_probe.algebra import bipolar, warm_up
from lensd_vsa_probe.answers import Answer, results_of
from lensd_vsa_probe.codebook import Codebook
from lensd_vsa_probe.params import ItemsParams, ProbeParams
from lensd_vsa_probe.prompts import check_concept, items_of
from lensd_vsa_probe.query import ask, subsets
from lensd_vsa_probe.reading import StateReading, reading_capture
from lensd_vsa_probe.states import check_finite
from lensd_vsa_probe.stored import FittedProbe

#: What one prompt may fail of without an end to the others.
_OF_ONE_PROMPT = (InvalidRequest, FailedPrecondition)


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt, ready to run. ``items`` as they will be unbound."""

    number: int
    tokens: tuple[int, ...]
    items: ItemsParams | None


@dataclass(frozen=True, slots=True)
class Spoken:
    """The readings of one prompt: as it came and, where the model was asked to go on, with what it
    ``said``."""

    before: StateReading
    said: str = ""
    after: StateReading | None = None


class VsaProbe(Analyzer):
    """Reads named concepts out of the model's state with a fitted hyperdimensional probe."""

    name = "vsa-probe"
    Params = ProbeParams
    results = (
        ResultSpec("concepts", "table", "the nearest concepts under the chosen query, best first"),
        ResultSpec("queries", "table", "every subset of the prompt's items, and what it brings out"),
        ResultSpec("similarities", "tensor", "query x concept: cosines of the concepts any query brings out"),
        ResultSpec("reading", "record", "the concept read, the model's own next tokens, whether they agree"),
    )
    examples = (
        Example(
            "danish-money",
            "what the model holds after an analogy, read with the probe that vsa-fit stored",
            {"artifact": "currencies", "prompts": ["Denmark : krone = Mexico :"], "top_k": 5},
        ),
    )

    def requirements(self, params: ProbeParams | None = None) -> Requirements:
        """Any decoder; that the artifact was fitted on this one is checked when it is opened."""
        return Requirements()

    def estimate(self, params: ProbeParams, card: ModelCard) -> Cost:
        """Each prompt once; where the model goes on a second time, with every token it says."""
        tokens = sum(len(card.encode(p, field=f"prompts[{i}]")) for i, p in enumerate(params.prompts))
        layers = card.anatomy.n_layers // 2 + 1
        size = len(params.prompts) * layers * card.anatomy.d_model * 4
        said = len(params.prompts) * params.generate
        return Cost(tokens=tokens * (2 if params.generate else 1) + said, bytes=size)

    async def analyze(self, params: ProbeParams, ctx: Context) -> AsyncIterator[Result]:
        """Yields each prompt's tables in order."""
        artifact = await ctx.artifacts.open(params.artifact)
        await asyncio.to_thread(warm_up)
        probe = await ctx.compute(FittedProbe.from_artifact, artifact)
        questions: list[Question | ItemError] = []
        for number in range(len(params.prompts)):
            try:
                questions.append(_question(params, number, probe, ctx.model))
            except _OF_ONE_PROMPT as error:
                if len(params.prompts) == 1:
                    raise
                questions.append(ItemError("concepts", error, item=str(number)))
        asked = [question for question in questions if isinstance(question, Question)]
        spoken = await _read([question.tokens for question in asked], params.generate, probe, ctx)
        waiting = dict(zip((question.number for question in asked), spoken, strict=True))
        for number, question in enumerate(questions):
            if isinstance(question, ItemError):
                yield question
                continue
            try:
                answers = await _answers(question, waiting[number], probe, ctx)
            except _OF_ONE_PROMPT as error:
                if len(params.prompts) == 1:
                    raise
                yield ItemError("concepts", error, item=str(number))
                continue
            ctx.progress(number + 1, len(questions), stage="decoding", unit="prompts")
            item = "" if len(params.prompts) == 1 else str(number)
            for result in results_of(answers, question.items, params, number, probe, ctx.model, item):
                yield result


def _question(params: ProbeParams, number: int, probe: FittedProbe, card: ModelCard) -> Question:
    codebook: Codebook = probe.codebook
    if params.targets is not None and params.query == "oracle":
        check_concept(params.targets[number], codebook, f"targets[{number}]")
    items = items_of(params, number, probe.corpus.template, codebook)
    if params.query == "key" and items is None and probe.corpus.is_paired:
        raise FailedPrecondition(
            f"prompts[{number}]: this probe unbinds a key from pairs; give items that name it",
            reason="ITEMS_NEEDED",
        )
    tokens = card.encode(params.prompts[number], field=f"prompts[{number}]")
    if len(tokens) + params.generate > card.anatomy.context_length:
        raise InvalidParams.field(
            f"prompts[{number}]",
            f"{len(tokens)} tokens and {params.generate} more do not fit the context of "
            f"{card.anatomy.context_length}",
        )
    return Question(number, tokens, items)


async def _read(
    tokens: Sequence[tuple[int, ...]], say: int, probe: FittedProbe, ctx: Context
) -> list[Spoken]:
    """Every prompt's reading and, where the model is to ``say`` so many tokens, the one after them."""
    if not tokens:
        return []
    capture = reading_capture(probe.layers, probe.spec, ctx.model.anatomy)
    rows = [Row(own) for own in tokens]
    if not say:
        return [Spoken(reading) for reading in await ctx.model.forward(rows, capture)]
    # As many as were asked for: what comes after an end of sequence is still the model's.
    sampling = Sampling(max_new_tokens=say, stop_tokens=())
    found: dict[int, Spoken] = {}
    async for event in ctx.model.generate(rows, sampling, capture):
        if isinstance(event, Generated):
            assert event.before is not None
            found[event.row] = Spoken(event.before, event.text, event.after)
    return [found[row] for row in range(len(rows))]


async def _answers(question: Question, spoken: Spoken, probe: FittedProbe, ctx: Context) -> list[Answer]:
    """What is read before the model says anything and, where asked, after it has."""
    answers = [await _answer("before", "", spoken.before, question.items, probe, ctx)]
    if spoken.after is not None:
        answers.append(await _answer("after", spoken.said, spoken.after, question.items, probe, ctx))
    return answers


async def _answer(
    when: str,
    said: str,
    reading: StateReading,
    items: ItemsParams | None,
    probe: FittedProbe,
    ctx: Context,
) -> Answer:
    check_finite(reading.pooled, "prompt")

    def decode() -> Answer:
        decoded = bipolar(probe.decode(reading.pooled[None]))[0]
        named = () if items is None else items.named()
        queries = [ask(decoded, chosen, probe.codebook) for chosen in subsets(named)]
        return Answer(when, said, reading, tuple(queries))

    with torch.no_grad():
        return await ctx.compute(decode)
