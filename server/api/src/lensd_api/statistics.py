"""What the whole vocabulary says at each position, in a few numbers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Per row four tensors [len(tokens) - 1], fp32: entry ``t`` is about the prediction of token ``t + 1``.

    Computed from the model's own logits, scale and soft-cap included. The KL divergence of the
    prediction from the uniform distribution over ``V`` tokens, turned around as "self-certainty"
    (Kang et al. 2025), is ``logsumexp - mean_logit - log(V)``.
    """

    #: Log-probability of the token that follows, in nats.
    logprob: "Tensor"
    #: Of the predicted distribution, in nats.
    entropy: "Tensor"
    #: Of the logits: their log-normaliser.
    logsumexp: "Tensor"
    #: Over the vocabulary.
    mean_logit: "Tensor"
