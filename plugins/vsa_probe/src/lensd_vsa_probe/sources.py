"""Where a fit's corpus comes from: the request, the plugin itself, or a probe stored before."""

import asyncio
from dataclasses import replace

import torch

from lensd_api import Context
from lensd_vsa_probe.corpus import Corpus, Example, from_analogies, from_examples
from lensd_vsa_probe.facts import RELATIONS, analogies
from lensd_vsa_probe.listing import integers
from lensd_vsa_probe.params import FitParams
from lensd_vsa_probe.stored import corpus_of

#: Names of what comes with the plugin: all of it, and each relation by itself.
OWN = {"facts": None, **{f"facts-{relation}": relation for relation in RELATIONS}}


async def load_corpus(params: FitParams, ctx: Context) -> Corpus:
    """Raises InvalidParams, and whatever opening an artifact raises."""
    if params.analogies is not None:
        corpus = await asyncio.to_thread(from_analogies, params.analogies, params.template)
    elif params.texts is not None:
        examples = [Example(t.text, t.pairs, t.features) for t in params.texts]
        corpus = from_examples(examples, "", "texts")
    elif params.corpus in OWN:
        corpus = from_analogies(analogies(OWN[params.corpus]), params.template)
    else:
        corpus = corpus_of(await ctx.artifacts.open(params.corpus or ""))
    return _drawn(corpus, params.rows, params.seed)


def _drawn(corpus: Corpus, rows: int | None, seed: int) -> Corpus:
    if rows is None or rows >= len(corpus.examples):
        return corpus
    order = torch.randperm(len(corpus.examples), generator=torch.Generator().manual_seed(seed))
    chosen = sorted(integers(order[:rows]))
    return replace(corpus, examples=tuple(corpus.examples[i] for i in chosen))
