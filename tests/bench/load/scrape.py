"""Numbers from a daemon's ``/metrics``, and what changed between two scrapes."""

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts by upper bound, cumulative, with the sum of all values."""

    buckets: Mapping[float, float]
    sum: float
    count: float

    @property
    def mean(self) -> float:
        """Mean of all values; 0 when there are none."""
        return self.sum / self.count if self.count else 0.0

    def at(self, share: float) -> float:
        """Percentile as Prometheus estimates it: linear within the bucket."""
        wanted, below, seen = share * self.count, 0.0, 0.0
        for bound, total in sorted(self.buckets.items()):
            if total >= wanted and total > seen:
                if bound == float("inf"):
                    return below
                return below + (bound - below) * (wanted - seen) / (total - seen)
            below, seen = bound, total
        return below


@dataclass(frozen=True, slots=True)
class Scrape:
    """Every sample of one scrape."""

    samples: Mapping[tuple[str, _Labels], float]

    @classmethod
    def parse(cls, text: str) -> "Scrape":
        """From the text format."""
        return cls(
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )

    @classmethod
    def of(cls, address: str) -> "Scrape":
        """Of the daemon whose metrics are at ``address``."""
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as response:
            return cls.parse(response.read().decode())

    def since(self, before: "Scrape") -> "Scrape":
        """What was added to each sample; for counters and histograms."""
        return Scrape({key: value - before.samples.get(key, 0.0) for key, value in self.samples.items()})

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples of ``name`` that carry ``labels``."""
        wanted = set(labels.items())
        return sum(v for (found, at), v in self.samples.items() if found == name and wanted <= at)

    def has(self, name: str) -> bool:
        """Whether the daemon knows ``name``."""
        return any(found == name for found, _ in self.samples)

    def histogram(self, name: str, **labels: str) -> Histogram:
        """All series of ``name`` that carry ``labels``, added up."""
        wanted, buckets = set(labels.items()), dict[float, float]()
        for (found, at), value in self.samples.items():
            if found == f"{name}_bucket" and wanted <= at:
                bound = float(dict(at)["le"])
                buckets[bound] = buckets.get(bound, 0.0) + value
        return Histogram(buckets, self.total(f"{name}_sum", **labels), self.total(f"{name}_count", **labels))
