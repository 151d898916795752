"""The analyzer ``vsa-fit``: from a list of analogies or texts to a stored probe and its evaluation."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from lensd_api import (
    Analyzer,
    Anatomy,
    Artifact,
    ArtifactInfo,
    Context,
    Cost,
    Example,
    InvalidParams,
    ModelCard,
    Record,
    Requirements,
    Result,
    ResultSpec,
    UnknownArtifact,
)
from lensd_vsa_probe.algebra import expected_error, warm_up
from lensd_vsa_probe.corpus import Corpus
from lensd_vsa_probe.facts import analogies
from lensd_vsa_probe.fitting import Fitting, Tokens, other_wording, training_table
from lensd_vsa_probe.params import FitParams
from lensd_vsa_probe.reading import upper_layers
from lensd_vsa_probe.report import Report, evaluation
from lensd_vsa_probe.runs import bytes_to_train
from lensd_vsa_probe.sources import OWN, load_corpus
from lensd_vsa_probe.stored import FORMAT, evaluation_of

#: A codebook that leads a perfect encoding astray more often than this deserves a warning.
ACCEPTED_ERROR = 1e-3
#: More than this share of targets found without looking at the model deserves one, too.
ACCEPTED_BLIND = 0.1
#: What is taken for a corpus that only its artifact knows: rows, and bytes of a word.
_STORED_ROWS, _WORD_BYTES = 4096, 24
#: Texts tokenised between two turns of the event loop.
_AT_ONCE = 64


class VsaFit(Analyzer):
    """Fits a hyperdimensional probe: a map from the model's state to named concepts, with its controls."""

    name = "vsa-fit"
    Params = FitParams
    results = (
        ResultSpec("training", "table", "one row per epoch and encoder, as they are trained"),
        ResultSpec("scores", "table", "the probe, each control and each baseline on held-out rows"),
        ResultSpec("evaluation", "record", "the probe's scores beside what they have to beat"),
        ResultSpec("artifact", "record", "under which name and version the probe is stored"),
    )
    examples = (
        Example(
            "currencies",
            "fit a small probe on the currencies of fourteen countries",
            {
                "artifact": "currencies",
                "corpus": "facts-currency",
                "dim": 512,
                "rows": 110,
                "epochs": 30,
                "batch": 32,
                "reuse": True,
            },
        ),
    )

    def requirements(self, params: FitParams | None = None) -> Requirements:
        """Any decoder: the stream after a block can always be captured."""
        return Requirements()

    def estimate(self, params: FitParams, card: ModelCard) -> Cost:
        """At most a token a byte of every text; the captures of a wave of texts, the states of all, and
        one encoder in training."""
        rows, size = _texts(params)
        layers, state = len(params.layers or upper_layers(card.anatomy)), card.anatomy.d_model * 4
        pooled = layers if params.pooling == "concat" else 1
        held = params.rows_at_once * layers * state + rows * (pooled + 1) * state
        return Cost(tokens=size, bytes=held + bytes_to_train(params, rows, pooled * card.anatomy.d_model))

    async def analyze(self, params: FitParams, ctx: Context) -> AsyncIterator[Result]:
        """Yields ``training`` as it goes; the rest once everything is done and stored."""
        layers = _layers(params, ctx.model.anatomy)
        await asyncio.to_thread(warm_up)
        corpus = await load_corpus(params, ctx)
        request = _digest(params, corpus)
        if params.reuse and (stored := await _find(params.artifact, request, ctx)) is not None:
            for result in _answer(stored.info, evaluation_of(stored), reused=True):
                yield result
            return
        _warn(params, corpus, ctx)
        tokens = {"own": await _encode([example.text for example in corpus.examples], ctx.model)}
        if other := other_wording(params, corpus):
            tokens["other"] = await _encode(other, ctx.model)
        fitting = Fitting(params, corpus, layers, tokens, ctx)
        async with aclosing(fitting.results()) as training:
            async for table in training:
                yield table
        facts = _facts(params, corpus, layers) | {"trained_on": fitting.device}
        _warn_of_memory(fitting.report, ctx)
        content = {"lines": fitting.report.lines, "facts": facts}
        headline = {k: v for k, v in _record(content).values.items() if isinstance(v, int | float | str)}
        info = await fitting.store(facts, {"request": request, "evaluation": headline})
        for result in _answer(info, content, reused=False):
            yield result


def _texts(params: FitParams) -> tuple[int, int]:
    """How many texts are read, and their bytes with what a tokenizer may add to each."""
    added, places = 4, len("{a}{b}{c}")
    if params.texts is not None:
        rows = len(params.texts)
        return rows, sum(len(given.text.encode()) + added for given in params.texts)
    known = params.analogies
    if known is None and params.corpus in OWN:
        known = analogies(OWN[params.corpus])
    if known is None:
        rows = params.rows or _STORED_ROWS
        words = rows * 3 * _WORD_BYTES
    else:
        rows = min(len(known), params.rows or len(known))
        words = rows * max(sum(len(word.encode()) for word in row[:3]) for row in known)
    templates = [params.template]
    if params.evaluation == "full":  # of the test rows, but that share is rounded
        templates.append(params.other_template)
    size = sum(words + rows * (len(text.encode()) - places + added) for text in templates)
    return rows * len(templates), size


def _answer(info: ArtifactInfo, content: dict[str, Any], *, reused: bool) -> list[Result]:
    """What a fit says at its end; a reused one also shows how it was trained."""
    report = Report(content["lines"])
    shown: list[Result] = [training_table(content["history"], last=True)] if reused else []
    stored = {
        "reference": info.reference,
        "sha256": info.sha256,
        "size_bytes": info.size_bytes,
        "model_revision": info.model_revision,
        "reused": reused,
    }
    return [*shown, report.table(), _record(content), Record("artifact", stored)]


def _record(content: dict[str, Any]) -> Record:
    return evaluation(Report(content["lines"]), content["facts"])


def _layers(params: FitParams, anatomy: Anatomy) -> tuple[int, ...]:
    if params.layers is None:
        return upper_layers(anatomy)
    for number, layer in enumerate(params.layers):
        if layer >= anatomy.n_layers:
            raise InvalidParams.field(
                f"layers[{number}]", f"{layer}: the model has {anatomy.n_layers} blocks"
            )
    return tuple(sorted(set(params.layers)))


def _digest(params: FitParams, corpus: Corpus) -> str:
    """What makes a stored probe the answer to these parameters on this corpus."""
    plain = params.model_dump_json(exclude={"reuse", "analogies", "texts", "corpus", "artifact", "rows"})
    rows = [[e.text, e.pairs, e.features] for e in corpus.examples]
    return hashlib.sha256(json.dumps([FORMAT, plain, rows]).encode()).hexdigest()


async def _find(name: str, request: str, ctx: Context) -> Artifact | None:
    try:
        info = await ctx.artifacts.info(name)
    except UnknownArtifact:
        return None
    if info.metadata.get("request") != request or info.model_revision != ctx.model.revision:
        return None
    return await ctx.artifacts.open(info.reference)


def _warn(params: FitParams, corpus: Corpus, ctx: Context) -> None:
    if corpus.duplicates:
        ctx.warn("DUPLICATE_ROWS", f"{corpus.duplicates} rows are repeated and count once")
    if corpus.conflicts:
        ctx.warn(
            "CONFLICTING_ROWS",
            f"{corpus.conflicts} rows share their text with a row of another target: no probe can be right on all",
        )
    concepts = len(corpus.spellings())
    if (error := expected_error(params.dim, concepts)) > ACCEPTED_ERROR:
        ctx.warn(
            "SMALL_DIMENSION",
            f"with dim {params.dim} even a perfect probe names a wrong one of {concepts} concepts first in "
            f"{error:.1%} of readings; take a larger dim",
        )


def _warn_of_memory(report: Report, ctx: Context) -> None:
    blind = report.line("mean_target")["probing_at_1"]
    if blind is not None and blind > ACCEPTED_BLIND:
        ctx.warn(
            "ANSWERED_WITHOUT_MODEL",
            f"the mean of all training targets, which ignores the model, already names {blind:.0%} of the test "
            "rows' targets: so few pairs fit into one hypervector. Only what the probe does better counts",
        )


async def _encode(texts: list[str], model: ModelCard) -> Tokens:
    tokens: Tokens = []
    for number, text in enumerate(texts):
        tokens.append(model.encode(text, field=f"texts[{number}]"))
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    return tokens


def _facts(params: FitParams, corpus: Corpus, layers: tuple[int, ...]) -> dict[str, Any]:
    concepts = len(corpus.spellings())
    return {
        "examples": len(corpus.examples),
        "concepts": concepts,
        "dim": params.dim,
        "pooling": params.pooling,
        "layers": f"{layers[0]}-{layers[-1]}",
        "duplicate_rows": corpus.duplicates,
        "conflicting_rows": corpus.conflicts,
        "expected_wrong_by_chance": expected_error(params.dim, concepts),
        "seed": params.seed,
    }
