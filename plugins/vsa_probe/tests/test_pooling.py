"""k-means over all documents at once, against one document at a time in plain Python."""

import pytest
import torch
from torch import Tensor

from lensd_api import AnalysisError
from lensd_vsa_probe.pooling import LOOK_EVERY, cluster, pool
from lensd_vsa_probe.states import check_finite


def lloyd(points: Tensor, start: list[int]) -> list[list[float]]:
    """The textbook algorithm for one document, in fp64."""
    rows = points.double().tolist()
    centroids = [rows[i] for i in start]
    for _ in range(100):
        nearest = [
            min(
                range(len(centroids)),
                key=lambda c: sum((p - q) ** 2 for p, q in zip(row, centroids[c], strict=True)),
            )
            for row in rows
        ]
        moved: list[list[float]] = []
        for c, old in enumerate(centroids):
            own = [row for row, n in zip(rows, nearest, strict=True) if n == c]
            moved.append([sum(x) / len(own) for x in zip(*own, strict=True)] if own else old)
        if moved == centroids:
            break
        centroids = moved
    return centroids


def test_each_document_is_clustered_as_if_it_were_alone() -> None:
    points = torch.randn(7, 16, 8, generator=torch.Generator().manual_seed(0))
    start = torch.randperm(16, generator=torch.Generator().manual_seed(3))[:5].tolist()
    together = cluster(points, 5, 3)
    for document in range(7):
        assert torch.allclose(
            together[document].double(),
            torch.tensor(lloyd(points[document], start), dtype=torch.float64),
            atol=1e-5,
        )
        assert torch.equal(together[document], cluster(points[document : document + 1], 5, 3)[0])


def test_rounds_after_all_have_settled_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(7, 16, 8, generator=torch.Generator().manual_seed(0))
    at_once = cluster(points, 5, 3)
    monkeypatch.setitem(LOOK_EVERY, "cpu", 8)
    assert torch.equal(cluster(points, 5, 3), at_once)


def test_points_that_coincide_leave_no_nan() -> None:
    points = torch.ones(2, 6, 4)
    assert torch.equal(cluster(points, 3, 0), torch.ones(2, 3, 4))


def test_fewer_points_than_clusters_are_each_their_own() -> None:
    points = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(pool(points, "kmeans_sum", 5, 0), points.sum(1), atol=1e-6)


def test_states_that_are_not_finite_are_refused() -> None:
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(AnalysisError, match="wider dtype") as refused:
            check_finite(torch.tensor([1.0, wrong]), "text 3")
        assert refused.value.reason == "NOT_FINITE"


@pytest.mark.parametrize(("how", "width"), [("sum", 4), ("concat", 12), ("kmeans_sum", 4)])
def test_the_kinds_of_pooling_have_their_shapes(how: str, width: int) -> None:
    points = torch.arange(24.0).reshape(2, 3, 4)
    pooled = pool(points.to(torch.bfloat16), how, 2, 0)  # pyright: ignore[reportArgumentType]
    assert pooled.shape == (2, width)
    assert pooled.dtype is torch.float32
    if how == "sum":
        assert torch.equal(pooled, points.sum(1))
    if how == "concat":
        assert torch.equal(pooled, points.flatten(1))
