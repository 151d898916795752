"""Makes one vector of the residual streams after several blocks, for all documents of a batch at once."""

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["kmeans_sum", "sum", "concat"]

#: Sixteen points settle within a few rounds; the bound is for what never does.
MAX_ROUNDS = 50

#: Whether all have settled is looked at in every such round: rounds after that change nothing, but a look
#: waits for a GPU.
LOOK_EVERY = {"cpu": 1, "cuda": 8}


def pool(states: Tensor, how: Pooling, k: int, seed: int) -> Tensor:
    """[document, layer, d] -> [document, d], or [document, layer * d] for ``concat``; fp32."""
    points = states.float()
    if how == "concat":
        return points.flatten(1)
    if how == "sum":
        return points.sum(1)
    return cluster(points, k, seed).sum(1)


def cluster(points: Tensor, k: int, seed: int) -> Tensor:
    """Lloyd's k-means of each document by itself: [document, point, d] -> centroids [document, k, d].

    Every document starts from the same seeded choice of its points, so its result does not depend on
    its neighbours: one that has settled stays as it is while others go on. A cluster that loses all its
    points keeps its last centroid. With fewer points than ``k``, each is a cluster.
    """
    count = points.shape[1]
    k = min(k, count)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:k]
    centroids = points[:, chosen.to(points.device)]
    assigned: Tensor | None = None
    look_every = LOOK_EVERY[points.device.type]
    for number in range(MAX_ROUNDS):
        # Not by way of a matrix product: at the norms of late layers its cancellation decides ties.
        distances = torch.cdist(points, centroids, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.argmin(-1)
        if assigned is not None and number % look_every == 0 and torch.equal(nearest, assigned):
            break
        assigned = nearest
        member = torch.nn.functional.one_hot(nearest, k).to(points.dtype)
        size = member.sum(1)[..., None]
        means = torch.einsum("npk,npd->nkd", member, points) / size.clamp(min=1)
        centroids = torch.where(size > 0, means, centroids)
    return centroids
