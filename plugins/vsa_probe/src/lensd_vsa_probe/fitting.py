"""One fit from texts to a stored probe: reads states, trains encoder after encoder, keeps checkpoints.

Invariant: nothing is stored before everything is there, and what a cut-off fit had done is not done
again by an identical one.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

import torch
from torch import Tensor

from lensd_api import ArtifactInfo, Context, InvalidParams, ModelCard, Result, Table, TooLarge, Workspace
from lensd_vsa_probe.algebra import bipolar
from lensd_vsa_probe.codebook import Codebook
from lensd_vsa_probe.corpus import Corpus, concept, fill
from lensd_vsa_probe.encoder import Encoder
from lensd_vsa_probe.measures import score
from lensd_vsa_probe.params import FitParams
from lensd_vsa_probe.placing import place_to_train
from lensd_vsa_probe.progress import FitProgress
from lensd_vsa_probe.reading import ReadingSpec, reading_capture
from lensd_vsa_probe.report import Bench, add_run, epoch_row, mean_agreement
from lensd_vsa_probe.runs import (
    Standard,
    Task,
    TrainingRun,
    bytes_to_train,
    plan_runs,
    prepare,
    recipe_of,
)
from lensd_vsa_probe.splits import split
from lensd_vsa_probe.states import States, embed
from lensd_vsa_probe.stored import FittedProbe
from lensd_vsa_probe.training import Trainer

#: A checkpoint at most this often: some ten seconds of work.
SAVE_WAVES, SAVE_EPOCHS = 16, 5
#: A slice of training keeps the cores this long at most, one batch at least; forwards go in between.
SLICE_S = 0.04

Tokens = list[tuple[int, ...]]


class Fitting:
    """A fit in progress. ``tokens`` by wording: ``own``, and ``other`` for the test rows in another."""

    def __init__(
        self,
        params: FitParams,
        corpus: Corpus,
        layers: tuple[int, ...],
        tokens: dict[str, Tokens],
        ctx: Context,
    ) -> None:
        self._params, self._corpus, self._tokens, self._ctx = params, corpus, tokens, ctx
        self._layers = layers
        self._spellings = corpus.spellings()
        model = ctx.model
        self._first = first_tokens(self._spellings.values(), model, params.corpus_field)
        self._spec = ReadingSpec(
            params.pooling, params.k, params.seed, tuple(sorted(set(self._first.values())))
        )
        d_model = model.anatomy.d_model
        d_pooled = d_model * len(layers) if params.pooling == "concat" else d_model
        self._progress = FitProgress(
            {name: States.empty(own, d_pooled, d_model) for name, own in tokens.items()}
        )
        self._may_save = True
        #: Where encoders are trained, once that is known.
        self.device = ""

    async def results(self) -> AsyncGenerator[Result, None]:
        """``training`` epoch by epoch as it happens; the probe is stored once this ends."""
        self._ctx.lower_priority()
        saved = await self._ctx.checkpoint.load()
        await asyncio.to_thread(self._progress.restore, saved)
        for name in self._tokens:
            await self._read_states(name)
        codebook = await self._ctx.compute(
            Codebook.draw, tuple(self._spellings), self._params.dim, self._params.seed
        )
        targets = await self._ctx.compute(codebook.encode_all, self._corpus.examples)
        bench = Bench(self._corpus.examples, codebook, self._progress.states["own"], self._wanted())
        needed = bytes_to_train(self._params, *bench.states.pooled.shape)
        async with place_to_train(self._ctx, self._params.device, needed) as work:
            self.device = work.device
            async with aclosing(self._train_all(bench, targets, work)) as tables:
                async for table in tables:
                    yield table

    async def store(self, facts: dict[str, Any], metadata: dict[str, Any]) -> ArtifactInfo:
        """Writes the probe with its evaluation."""
        report = self._progress.report
        content = {"lines": report.lines, "history": report.history, "facts": facts}

        def blobs() -> dict[str, bytes]:
            codebook = Codebook.draw(tuple(self._spellings), self._params.dim, self._params.seed)
            return self._probe(codebook).blobs(content)

        written = await asyncio.to_thread(blobs)
        return await self._ctx.artifacts.store(self._params.artifact, written, metadata)

    @property
    def report(self) -> Any:
        """What was found so far."""
        return self._progress.report

    # Reading

    async def _read_states(self, name: str) -> None:
        ctx, states, tokens = self._ctx, self._progress.states[name], self._tokens[name]
        capture = reading_capture(self._layers, self._spec, ctx.model.anatomy)
        stage = "reading states" if name == "own" else "reading states, other template"
        waves = 0
        async with aclosing(embed(states, tokens, capture, ctx.model, self._params.rows_at_once)) as read:
            async for _ in read:
                waves += 1
                ctx.progress(states.done, len(tokens), stage=stage, unit="texts")
                if waves % SAVE_WAVES == 0:
                    await self._save()
        if waves:
            await self._save()

    def _wanted(self) -> Tensor:
        spellings = (self._spellings.get(concept(e.target)) for e in self._corpus.examples)
        return torch.tensor([-1 if word is None else self._first[word] for word in spellings])

    # Training

    async def _train_all(
        self, bench: Bench, targets: Tensor, work: Workspace
    ) -> AsyncGenerator[Result, None]:
        history = self._progress.report.history
        shown = 0
        for run in plan_runs(self._params, paired=self._corpus.is_paired):
            if run.name not in self._progress.finished:
                async with aclosing(self._train(run, bench, targets, work)) as epochs:
                    async for _ in epochs:
                        # The last row is kept back: it ends the table.
                        if len(history) - 1 > shown:
                            yield training_table(history[shown:-1], last=False)
                            shown = len(history) - 1
        yield training_table(history[shown:], last=True)

    async def _train(
        self, run: TrainingRun, bench: Bench, targets: Tensor, work: Workspace
    ) -> AsyncGenerator[None, None]:
        ctx, progress = self._ctx, self._progress
        task = await ctx.compute(prepare, run, bench.examples, targets, bench.states, self._params)
        trainer = await work.compute(Trainer, task.data, recipe_of(self._params, run), work.device)
        if progress.trainer:
            await work.compute(trainer.restore, progress.trainer)
        baseline = mean_agreement(task.data.held_targets)
        while not trainer.done:
            epoch = await work.compute(trainer.run, SLICE_S, time.monotonic)
            if epoch is None:
                continue
            progress.report.history.append(epoch_row(run.name, epoch, baseline))
            ctx.progress(
                epoch.number,
                trainer.recipe.epochs,
                stage=f"training {run.name}: validation cosine {epoch.cosine:.3f}, constant {baseline:.3f}",
                unit="epochs",
            )
            if epoch.number % SAVE_EPOCHS == 0 and not trainer.done:
                progress.trainer = await work.compute(trainer.save)
                await self._save()
            yield
        await self._conclude(task, await work.compute(trainer.finish), bench)
        await self._save()

    async def _conclude(self, task: Task, encoder: Encoder, bench: Bench) -> None:
        ctx, progress = self._ctx, self._progress
        decoded = await ctx.compute(_decode, encoder, task.test_states)
        scoring = add_run(progress.report, bench, task, decoded)
        while await ctx.compute(next, scoring, "over") is None:
            pass
        progress.trainer = {}
        if task.run.name == "probe":
            kept = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
            progress.probe = kept | {"mean": task.standard.mean, "deviation": task.standard.deviation}
            if "other" in self._tokens:
                await ctx.compute(self._score_other_template, task, encoder, bench)
        progress.finished.append(task.run.name)

    def _score_other_template(self, task: Task, encoder: Encoder, bench: Bench) -> None:
        decoded = _decode(encoder, task.standard.apply(self._progress.states["other"].pooled))
        examples = [bench.examples[row] for row in task.test_rows]
        self._progress.report.add("other_template", task.run.split, score(decoded, examples, bench.codebook))

    def _probe(self, codebook: Codebook) -> FittedProbe:
        tensors = self._progress.probe
        params = self._params
        width = params.width or params.dim
        encoder = Encoder(tensors["mean"].shape[0], width, params.dim, 0.0)
        encoder.load_state_dict(
            {n.removeprefix("encoder."): t for n, t in tensors.items() if n.startswith("encoder.")}
        )
        standard = Standard(tensors["mean"], tensors["deviation"])
        return FittedProbe(encoder, standard, codebook, self._corpus, self._layers, self._spec)

    async def _save(self) -> None:
        if not self._may_save:
            return
        try:
            # Tens of megabytes: copied off the loop, which all analyses share.
            await self._ctx.checkpoint.save(await asyncio.to_thread(self._progress.blobs))
        except TooLarge as error:
            self._may_save = False
            self._ctx.warn("NO_CHECKPOINT", f"this fit cannot be resumed: {error.message}")


def _decode(encoder: Encoder, states: Tensor) -> Tensor:
    """Bipolar hypervectors [n, dim] of standardised ``states`` [n, p]."""
    with torch.no_grad():
        return bipolar(encoder(states))


def first_tokens(words: Iterable[str], card: ModelCard, field: str) -> dict[str, int]:
    """The first token of each of ``words`` inside a text. Raises InvalidParams naming ``field``."""
    found: dict[str, int] = {}
    for word in words:
        token = card.encode(f" {word}", special_tokens=False, field=field)[0]
        if token >= card.anatomy.vocab_size:  # a tokenizer may know more tokens than the model
            raise InvalidParams.field(
                field,
                f"{word!r} begins with token {token}, but the model's vocabulary has {card.anatomy.vocab_size}",
            )
        found[word] = token
    return found


def other_wording(params: FitParams, corpus: Corpus) -> list[str]:
    """The probe's test rows in the other template; empty where there is nothing to reword."""
    if params.evaluation != "full" or not corpus.template:
        return []
    test = split(corpus.examples, params.split, params.test_share, params.seed).test
    texts: list[str] = []
    for row in test:
        (a, b), (c, _) = corpus.examples[row].pairs
        texts.append(fill(params.other_template, a, b, c))
    return texts


def training_table(history: Sequence[dict[str, Any]], *, last: bool) -> Table:
    """Rows of the table ``training``."""
    names = ("run", "number", "train_loss", "validation_loss", "cosine", "bit_accuracy", "constant_cosine")
    columns = {name: [row[name] for row in history] for name in names}
    columns["epoch"] = columns.pop("number")
    return Table("training", columns, last=last)
