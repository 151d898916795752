"""What callers may ask of GraphTracer."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from lensd_api import BaseParams


class Edges(StrEnum):
    """Which edges the graph has; all but the first are ablations."""

    REFERENCES = "references"
    SHUFFLED = "shuffled"
    TIME = "time"
    NONE = "none"


class GraphTracerParams(BaseParams):
    """One log a request."""

    trace: dict[str, Any] | list[Any] = Field(
        description="The log itself: the plain form, a Who&When file, OpenAI messages or OpenTelemetry spans."
    )
    format: Literal["auto", "plain", "who_and_when", "openai", "otel"] = Field(
        default="auto", description="What the log is; by default the only format it fits."
    )
    use_answer: bool = Field(
        default=False, description="Whether the right answer, if the log has one, may be looked at."
    )
    use_model: bool = Field(
        default=False,
        description="Whether the request's model measures how much each step's words depend on each earlier step.",
    )
    edges: Edges = Field(
        default=Edges.REFERENCES,
        description="references; or an ablation: shuffled (each step's parents drawn at random), time (the step "
        "before), none (features that need the graph are zero).",
    )
    top_k: int = Field(default=10, ge=1, le=1000, description="Suspects reported.")
    max_parents: int = Field(default=4, ge=1, le=32, description="Strongest references kept of one step.")
    window_tokens: int = Field(
        default=512,
        ge=32,
        le=131_072,
        description="Tokens of earlier steps the model sees before a step; older steps are left out.",
    )
    step_tokens: int = Field(
        default=96, ge=8, le=8192, description="Tokens kept of each earlier step: its beginning and its end."
    )
    output_tokens: int = Field(
        default=96,
        ge=4,
        le=8192,
        description="Tokens at the beginning of a step whose likelihood is measured.",
    )
    flow_steps: tuple[int, ...] | None = Field(
        default=None,
        min_length=1,
        description="Steps whose dependence on earlier ones the model measures; by default as many as fit max_rows, last first.",
    )
    max_rows: int = Field(
        default=512, ge=2, le=100_000, description="Rows the model may run for this request, at most."
    )
