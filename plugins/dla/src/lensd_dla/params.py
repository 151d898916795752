"""What callers may ask of direct logit attribution, and what they may not combine."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lensd_api import BaseParams, FieldViolation, InvalidParams, Unit

_INPUTS = ("prompt", "prompts", "tokens", "messages")


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: str = Field(min_length=1, description="Who speaks, as the model's chat template names it.")
    content: str = Field(description="What is said.")


class DlaParams(BaseParams):
    """Exactly one of ``prompt``, ``prompts``, ``tokens`` and ``messages`` is given."""

    prompt: str | None = Field(default=None, min_length=1, description="Text to run.")
    prompts: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="Several texts; results carry their index as item.",
    )
    tokens: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, min_length=1, description="Token ids to run as they are."
    )
    messages: tuple[Message, ...] | None = Field(
        default=None, min_length=1, description="A conversation, laid out by the model's chat template."
    )
    target: str | Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="The token whose logit is explained: its text, leading space included, or its id. "
        "By default the model's top prediction at each position.",
    )
    contrast: str | Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Explain the target's logit minus this token's."
    )
    direction: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the request's tensor [d_model] to read out along, in place of a token.",
    )
    positions: Literal["all"] | Annotated[tuple[int, ...], Field(min_length=1)] = Field(
        default=(-1,), description='Where to read: "all", or positions; negative ones count from the end.'
    )
    unit: Unit = Field(
        default=Unit.COMPONENT,
        description="How finely to split. A layer that does not offer it gives its next coarser rows.",
    )
    top_k: int = Field(
        default=50,
        ge=1,
        le=10_000,
        description="Rows a position at unit neuron and source, largest first; the others are one row a layer.",
    )
    direct_effect: bool = Field(
        default=False,
        description="Also give each component's effect when it is subtracted and the norm recomputed.",
    )
    lens: bool = Field(
        default=False, description="Also read the residual stream after every layer as logits."
    )
    lens_top_k: int = Field(default=5, ge=1, le=100, description="Tokens a layer in the lens.")

    @model_validator(mode="after")
    def _fields_agree(self) -> "DlaParams":
        violations = list(self._conflicts())
        if violations:
            # Not a ValueError: pydantic would drop the field it is about.
            raise InvalidParams(
                "; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations
            )
        return self

    def _conflicts(self) -> Iterator[FieldViolation]:
        given = [name for name in _INPUTS if getattr(self, name) is not None]
        if not given:
            yield FieldViolation("prompt", f"give one of {', '.join(_INPUTS)}")
        for name in given[1:]:
            yield FieldViolation(name, f"{given[0]} is given already; give one of {', '.join(_INPUTS)}")
        if self.direction is not None:
            for name in ("target", "contrast"):
                if getattr(self, name) is not None:
                    yield FieldViolation(name, "does not go with direction, which is read out as it is")
        if self.contrast is not None and self.contrast == self.target:
            yield FieldViolation("contrast", "is the target itself: the difference is zero everywhere")
