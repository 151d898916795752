"""What a caller is shown of one prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lensd_api import ModelCard, Record, Result, Table, Tensor
from lensd_vsa_probe.algebra import default_threshold
from lensd_vsa_probe.categories import of_analogy, of_text
from lensd_vsa_probe.corpus import concept
from lensd_vsa_probe.listing import floats, integers
from lensd_vsa_probe.params import ItemsParams, ProbeParams
from lensd_vsa_probe.query import Query, choose, strongest
from lensd_vsa_probe.reading import StateReading
from lensd_vsa_probe.stored import FittedProbe

#: Concepts that each query adds to the map of similarities.
MAPPED = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """One reading: ``when`` is before or after the model has ``said`` something."""

    when: str
    said: str
    reading: StateReading
    queries: tuple[Query, ...]


def results_of(
    answers: Sequence[Answer],
    items: ItemsParams | None,
    params: ProbeParams,
    number: int,
    probe: FittedProbe,
    card: ModelCard,
    item: str,
) -> list[Result]:
    """All results of one prompt, under ``item``."""
    target = params.targets[number] if params.targets is not None else ""
    named = () if items is None else tuple(dict.fromkeys(map(concept, items.named())))
    key = "" if items is None else items.key
    chosen = [choose(answer.queries, params.query, named, key, target, probe.codebook) for answer in answers]
    prompt, related = params.prompts[number], probe.corpus.related()

    def category(name: str, said: str) -> str:
        if items is None:
            return of_text(name, target, prompt, said)
        return of_analogy(name, items, target, related)

    threshold = default_threshold(probe.codebook.dim) if params.threshold is None else params.threshold
    columns: dict[str, list[Any]] = {
        name: [] for name in ("when", "concept", "cosine", "extracted", "category")
    }
    for answer, query in zip(answers, chosen, strict=True):
        best = query.cosines.topk(min(params.top_k, len(probe.codebook)))
        for cosine, index in zip(floats(best.values), integers(best.indices), strict=True):
            name = probe.codebook.concepts[index]
            columns["when"].append(answer.when)
            columns["concept"].append(name)
            columns["cosine"].append(cosine)
            columns["extracted"].append(cosine >= threshold)
            columns["category"].append(category(name, answer.said))
    first = answers[0].queries
    return [
        Table("concepts", columns, title=_title(chosen[0], params), item=item),
        _queries(first, probe, item),
        _map(first, probe, item),
        _reading(answers, chosen, threshold, params, probe, card, item),
    ]


def _title(query: Query, params: ProbeParams) -> str:
    return f"query {params.query}: {_spelled(query)}"


def _spelled(query: Query) -> str:
    return f"unbind {' * '.join(query.items)}" if query.items else "nothing unbound"


def _queries(queries: Sequence[Query], probe: FittedProbe, item: str) -> Table:
    best = [strongest(query, probe.codebook) for query in queries]
    columns = {
        "query": [_spelled(query) for query in queries],
        "concept": [name for name, _ in best],
        "cosine": [cosine for _, cosine in best],
    }
    return Table("queries", columns, item=item)


def _map(queries: Sequence[Query], probe: FittedProbe, item: str) -> Tensor:
    cosines = torch.stack([query.cosines for query in queries])
    places = cosines.topk(min(MAPPED, cosines.shape[1]), dim=-1).indices
    shown = list(dict.fromkeys(integers(places)))
    labels = {
        "query": [_spelled(query) for query in queries],
        "concept": [probe.codebook.concepts[i] for i in shown],
    }
    return Tensor("similarities", cosines[:, shown], axes=("query", "concept"), labels=labels, item=item)


def _reading(
    answers: Sequence[Answer],
    chosen: Sequence[Query],
    threshold: float,
    params: ProbeParams,
    probe: FittedProbe,
    card: ModelCard,
    item: str,
) -> Record:
    reading = answers[0].reading
    name, cosine = strongest(chosen[0], probe.codebook)
    spelling = probe.corpus.spellings().get(name, name)
    begins = card.encode(f" {spelling}", special_tokens=False)[0]
    values: dict[str, Any] = {
        "concept": name,
        "cosine": cosine,
        "extracted": cosine >= threshold,
        "threshold": threshold,
        "query": _spelled(chosen[0]),
        "model_token": card.token_text(int(reading.top[0])),
        "agrees": int(reading.top[0]) == begins,
        "model_tokens": [card.token_text(int(token)) for token in reading.top],
        "model_logits": floats(reading.top_logits),
    }
    if params.targets is not None:
        target = params.targets[int(item or 0)]
        values["target_found"] = name == concept(target)
    if len(answers) > 1:
        values["said"] = answers[-1].said
        values["concept_after"] = strongest(chosen[-1], probe.codebook)[0]
    return Record("reading", values, item=item)
