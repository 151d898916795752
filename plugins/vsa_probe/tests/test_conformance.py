"""The suite every analyzer passes, on the real engine with tiny real models."""

from typing import Any

import pytest

from lensd_api.testing import AnalyzerConformance, Engine, Job, differences
from lensd_vsa_probe import VsaFit, VsaProbe
from plugins.vsa_probe.tests.small_fit import small


class TestVsaFit(AnalyzerConformance):
    analyzer = VsaFit()
    requests = (small(artifact="conformance"),)

    def test_batched_equals_alone(self, lensd_engine: Engine) -> None:
        """Fits side by side share batches. Each stores a version of its own, so what is compared is
        what was found; training carries the rounding of the states forward, hence the tolerance."""
        for job in self.jobs(lensd_engine):
            alone = lensd_engine.run(self.analyzer, job)
            for other in lensd_engine.run_together(self.analyzer, [job] * 3):
                assert other.error is None, f"{job}: {other.error}"
                found = [[r for r in o.results if r.name == "training"] for o in (alone, other)]
                assert not (apart := differences(*found, 1e-3)), f"{job}: {apart}"


class TestVsaProbe(AnalyzerConformance):
    analyzer = VsaProbe()
    requests = (
        {"prompts": ["cow : calf = hen :"], "query": "key", "top_k": 3},
        {"prompts": ["cow : calf = hen :", "cat : kitten = pig :"], "query": "best"},
        {"prompts": ["cow : calf = hen :"], "query": "oracle", "targets": ["chick"], "generate": 2},
    )

    @pytest.fixture(autouse=True)
    def _fitted(self, lensd_engine: Engine) -> None:
        """A probe for every model, under a name of its own."""
        for model in lensd_engine.models:
            params = small(artifact=f"probe-{model}", reuse=True)
            outcome = lensd_engine.run(VsaFit(), Job(params, model))
            assert outcome.error is None, outcome.error

    def jobs(self, engine: Engine) -> list[Job]:
        requests: tuple[Any, ...] = self.requests or ()
        return [Job(r | {"artifact": f"probe-{m}"}, m) for r in requests for m in engine.models]
