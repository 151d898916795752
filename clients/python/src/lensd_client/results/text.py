"""Text with scored spans."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lensd_client.results import html


@dataclass(frozen=True, slots=True)
class Span:
    """``text[start:end]`` with a score, in the unit its result documents."""

    start: int
    end: int
    score: float
    label: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class AnnotatedText:
    """A text and the spans in it, which may overlap."""

    text: str
    spans: tuple[Span, ...] = ()
    name: str = ""
    title: str = ""
    item: str = ""

    def to_dict(self) -> dict[str, Any]:
        """``{"text": …, "spans": [{"start", "end", "score", "label"}, …]}``."""
        spans = [{"start": s.start, "end": s.end, "score": s.score, "label": s.label} for s in self.spans]
        return {"text": self.text, "spans": spans}

    def scores(self) -> list[float]:
        """The score of every character: the sum over the spans that hold it."""
        scores = [0.0] * len(self.text)
        for span in self.spans:
            for i in range(max(0, span.start), min(span.end, len(self.text))):
                scores[i] += span.score
        return scores

    def runs(self) -> list[tuple[str, float]]:
        """The text cut wherever the set of spans changes, each piece with its score."""
        ends = {0, len(self.text)}
        for span in self.spans:
            ends |= {min(max(span.start, 0), len(self.text)), min(max(span.end, 0), len(self.text))}
        cuts = sorted(ends)
        scores = self.scores()
        return [(self.text[a:b], scores[a]) for a, b in pairwise(cuts)]

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:59] + "…"
        return f"<AnnotatedText {self.name!r}: {text!r}, {len(self.spans)} spans>"

    def _repr_html_(self) -> str:
        runs = self.runs()
        largest = max((abs(score) for _, score in runs if score == score), default=0.0) or 1.0
        pieces = "".join(_piece(text, score, largest) for text, score in runs)
        heading = html.escape(self.title or self.name)
        return f'<div><b>{heading}</b><p style="white-space:pre-wrap">{pieces}</p></div>'


def _piece(text: str, score: float, largest: float) -> str:
    if score == 0 or score != score:
        return html.escape(text)
    strength = 0.1 + 0.6 * min(1.0, abs(score) / largest)
    colour = "178,24,43" if score > 0 else "33,102,172"
    return f'<span style="background:rgba({colour},{strength:.2f})" title="{score:+.4g}">{html.escape(text)}</span>'
