"""A fitted probe as an artifact: what is written, and what must hold before it is read with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from safetensors.torch import load, save
from torch import Tensor

from lensd_api import Artifact, FailedPrecondition
from lensd_vsa_probe.codebook import Codebook
from lensd_vsa_probe.corpus import Corpus, Example
from lensd_vsa_probe.encoder import Encoder
from lensd_vsa_probe.reading import ReadingSpec
from lensd_vsa_probe.runs import Standard

FORMAT = 1
ENCODER, CORPUS, EVALUATION = "encoder.safetensors", "corpus.json", "evaluation.json"


@dataclass(frozen=True, slots=True)
class FittedProbe:
    """Everything reading needs."""

    encoder: Encoder
    standard: Standard
    codebook: Codebook
    corpus: Corpus
    layers: tuple[int, ...]
    spec: ReadingSpec

    def decode(self, pooled: Tensor) -> Tensor:
        """Logits [n, dim] of pooled states [n, p]."""
        with torch.no_grad():
            return self.encoder(self.standard.apply(pooled))

    def blobs(self, evaluation: Mapping[str, Any]) -> dict[str, bytes]:
        """For the store. Equal fits give equal bytes."""
        weights = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        weights |= {"mean": self.standard.mean, "deviation": self.standard.deviation}
        first = self.encoder.linear[0]
        described = {
            "format": FORMAT,
            "dim": self.codebook.dim,
            "d_in": first.in_features,
            "width": first.out_features,
            "layers": self.layers,
            "pooling": [self.spec.pooling, self.spec.k, self.spec.seed],
            "seed": self.codebook.seed,
            "concepts": self.codebook.concepts,
            "codebook_sha256": self.codebook.digest(),
            "template": self.corpus.template,
            "examples": [[e.text, e.pairs, e.features] for e in self.corpus.examples],
        }
        return {
            ENCODER: save({name: value.contiguous() for name, value in weights.items()}),
            CORPUS: json.dumps(described, sort_keys=True).encode(),
            EVALUATION: json.dumps(evaluation, sort_keys=True).encode(),
        }

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> Self:
        """Raises FailedPrecondition for another analyzer's artifact, format or codebook."""
        described = _described(artifact)
        codebook = Codebook.draw(described["concepts"], int(described["dim"]), int(described["seed"]))
        if codebook.digest() != described["codebook_sha256"]:
            raise FailedPrecondition(
                f"artifact {artifact.info.reference}: this machine's torch draws another codebook from its "
                "seed than the one it was fitted with; fit it here",
                reason="ARTIFACT_OF_ANOTHER_VERSION",
            )
        tensors = load(artifact.blobs[ENCODER])
        encoder = Encoder(int(described["d_in"]), int(described["width"]), codebook.dim, 0.0)
        encoder.load_state_dict(
            {n.removeprefix("encoder."): t for n, t in tensors.items() if n.startswith("encoder.")}
        )
        pooling, k, seed = described["pooling"]
        return cls(
            encoder=encoder,
            standard=Standard(tensors["mean"], tensors["deviation"]),
            codebook=codebook,
            corpus=corpus_of(artifact),
            layers=tuple(described["layers"]),
            spec=ReadingSpec(pooling, k, seed),
        )


def corpus_of(artifact: Artifact) -> Corpus:
    """The corpus a probe was fitted on. Raises FailedPrecondition when the artifact is none."""
    described = _described(artifact)
    examples = tuple(
        Example(text, tuple((left, right) for left, right in pairs), tuple(features))
        for text, pairs, features in described["examples"]
    )
    return Corpus(examples, described["template"])


def evaluation_of(artifact: Artifact) -> dict[str, Any]:
    """Lines, history and facts as they were stored."""
    return cast("dict[str, Any]", json.loads(artifact.blobs[EVALUATION]))


def _described(artifact: Artifact) -> dict[str, Any]:
    if not {ENCODER, CORPUS, EVALUATION} <= artifact.blobs.keys():
        raise FailedPrecondition(
            f"artifact {artifact.info.reference} was stored by {artifact.info.analyzer}: it is no probe; "
            "fit one with vsa-fit",
            reason="NOT_A_PROBE",
        )
    described = cast("dict[str, Any]", json.loads(artifact.blobs[CORPUS]))
    if described["format"] != FORMAT:
        raise FailedPrecondition(
            f"artifact {artifact.info.reference} is of format {described['format']}, this version reads "
            f"{FORMAT}: fit it again",
            reason="ARTIFACT_OF_ANOTHER_VERSION",
        )
    return described
