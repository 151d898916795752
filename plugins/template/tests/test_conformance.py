"""What every analyzer has to pass, and what is particular to this one."""

from lensd_api.testing import AnalyzerConformance, Engine, Job
from lensd_template import TokenCount


class TestTokenCount(AnalyzerConformance):
    """Runs on tiny models of several architectures; the fixture comes with lensd-server."""

    analyzer = TokenCount()

    def test_it_counts_what_the_tokenizer_makes(self, lensd_engine: Engine) -> None:
        for model in lensd_engine.models:
            outcome = lensd_engine.run(self.analyzer, Job({"prompt": "one two three"}, model))
            (table,) = outcome.results
            expected = len(lensd_engine.card(model).encode("one two three"))
            assert table.columns == {"count": [expected]}
