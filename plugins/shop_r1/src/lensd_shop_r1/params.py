"""What callers may ask of the rewards. One bad item is refused alone; a bad request as a whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from lensd_api import BaseParams, FieldViolation, InvalidParams

ActionType = Literal["type_and_submit", "click", "terminate"]
#: In the order in which metrics list them.
ACTION_TYPES: tuple[ActionType, ...] = ("type_and_submit", "click", "terminate")
#: Fields that say what an action acts on, by type.
FIELDS: dict[ActionType, tuple[str, ...]] = {
    "type_and_submit": ("name", "text"),
    "click": ("name",),
    "terminate": (),
}
SelfCertainty = Literal["kl_u_p", "kl_p_u", "as_printed", "off"]

#: Bounds the time that comparing one field takes, however long the output's is.
MAX_REFERENCE_CHARS = 16_384


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: str = Field(min_length=1, description="Who speaks, as the model's chat template names it.")
    content: str = Field(description="What is said.")


class Reference(BaseModel):
    """The true next action; fields its type does not have may be left out, ``null`` or empty."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    type: ActionType
    name: str | None = Field(
        default=None,
        max_length=MAX_REFERENCE_CHARS,
        description="Element acted on: for click and type_and_submit.",
    )
    text: str | None = Field(
        default=None, max_length=MAX_REFERENCE_CHARS, description="What is typed: for type_and_submit."
    )

    @model_validator(mode="after")
    def _has_its_fields(self) -> "Reference":
        for field in ("name", "text"):
            value = getattr(self, field)
            if field in FIELDS[self.type] and value is None:
                raise ValueError(f"a {self.type} needs {field!r}")
            if field not in FIELDS[self.type] and value:
                raise ValueError(f"a {self.type} has no {field!r}")
        return self


class Rollout(BaseModel):
    """One output to score. Exactly one of ``context`` and ``messages`` is given."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    context: str | None = Field(default=None, min_length=1, description="What the model was given.")
    messages: tuple[Message, ...] | None = Field(
        default=None,
        min_length=1,
        strict=False,
        description="The same as a conversation, laid out by the chat template.",
    )
    output: str = Field(description="What the model answered, word for word.")
    reference: Reference = Field(description="What the shopper did.")
    group_id: str = Field(default="", description="Names rollouts of one prompt, for group statistics.")

    @model_validator(mode="after")
    def _has_one_context(self) -> "Rollout":
        if (self.context is None) == (self.messages is None):
            raise ValueError("give exactly one of 'context' and 'messages'")
        return self


@dataclass(frozen=True, slots=True)
class RefusedRollout:
    """An item that is not a rollout; places are relative to it."""

    violations: tuple[FieldViolation, ...]

    def error(self, index: int) -> InvalidParams:
        """What to tell of item ``index``."""
        path = f"items[{index}]"
        placed = [
            FieldViolation(f"{path}.{v.field}" if v.field else path, v.description) for v in self.violations
        ]
        return InvalidParams(f"{placed[0].field}: {placed[0].description}", violations=placed)


def _read_item(value: Any) -> Rollout | RefusedRollout:
    try:
        return Rollout.model_validate(value)
    except ValidationError as error:
        return RefusedRollout(
            tuple(
                FieldViolation(".".join(map(str, fault["loc"])), _description(cast("dict[str, Any]", fault)))
                for fault in error.errors(include_url=False, include_input=False)[:8]
            )
        )


def _description(fault: dict[str, Any]) -> str:
    return "no such field" if fault["type"] == "extra_forbidden" else str(fault["msg"])


#: A rollout, or why it is none: others of the request must not suffer from it.
Item = Annotated[Rollout | RefusedRollout, PlainValidator(_read_item, json_schema_input_type=Rollout)]


class ShopR1Params(BaseParams):
    """Rollouts, and every coefficient of their reward."""

    items: tuple[Item, ...] = Field(
        min_length=1, max_length=65_536, description="Outputs to score; results name them by index."
    )
    self_certainty: SelfCertainty = Field(
        default="kl_u_p",
        description="How sure of the rationale the model is; kl_u_p is -mean(log(V p)), kl_p_u sum(p log(V p)), "
        "as_printed the latter over V, which is no signal. off needs no model.",
    )
    # Not named `parse`: that is what validates parameters.
    parse_mode: Literal["strict", "lenient"] = Field(
        default="strict",
        alias="parse",
        description="strict: nothing but the JSON object. lenient: prose or a code fence may stand around it.",
    )
    token_certainty: bool = Field(
        default=False, description="Also give each rationale as text, its tokens scored with their certainty."
    )
    logprobs: bool = Field(
        default=False, description="Also give the log-probability of every token of each output."
    )
    alpha: float = Field(default=0.005, description="Weight of the self-certainty.")
    dars: float = Field(
        default=1000.0, ge=0, description="Factor of the ROUGE-L of what is hardest to get right."
    )
    rouge_threshold: float = Field(default=0.75, ge=0, le=1, description="Least ROUGE-L that counts.")
    format_reward: float = Field(default=0.5, description="For a well-formed output.")
    type_reward: float = Field(default=0.3, description="For the right type of action.")
    click_name_reward: float = Field(default=0.2, description="For a click that names an element.")
    type_name_reward: float = Field(default=0.1, description="For a type_and_submit that names an element.")
    type_text_reward: float = Field(default=0.1, description="For a type_and_submit with a text.")
    type_name_factor: float = Field(
        default=0.1, ge=0, description="Factor of the ROUGE-L of the name of a type_and_submit."
    )

    @model_validator(mode="after")
    def _options_agree(self) -> "ShopR1Params":
        violations = list(self._conflicts())
        if violations:
            # Not a ValueError: pydantic would drop the field it is about.
            raise InvalidParams(
                "; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations
            )
        return self

    def _conflicts(self) -> Iterator[FieldViolation]:
        if self.token_certainty and self.self_certainty == "off":
            yield FieldViolation("token_certainty", "needs a self_certainty, which is off")

    @property
    def needs_model(self) -> bool:
        """Whether anything asked for comes from a model."""
        return self.self_certainty != "off" or self.logprobs
