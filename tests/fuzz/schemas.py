"""Parameters after an analyzer's own JSON Schema: as it wants them, and with something wrong."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tests.fuzz import noise

_LONGEST = 3
_WORDS = ("The capital of France is", "Mary gave the book to", "one two three", "a", "b", "king", "queen")


def sample(rng: random.Random, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int = 6) -> Any:
    """A small value that ``schema`` takes, as far as its types and bounds say."""
    schema = _resolved(schema, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return sample(rng, rng.choice(schema[choice]), root, depth - 1)
    match schema.get("type"):
        case "object":
            return _object(rng, schema, root, depth)
        case "array":
            return _array(rng, schema, root, depth)
        case "string":
            return _string(rng, schema)
        case "integer":
            return round(_number(rng, schema, whole=True))
        case "number":
            return _number(rng, schema, whole=False)
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case _:
            return noise.value(rng, 1)


def spoil(rng: random.Random, params: dict[str, Any]) -> dict[str, Any]:
    """``params`` with one place, anywhere inside, made something else; or with more, or less."""
    places = list(_places(params))
    spoilt = cast("dict[str, Any]", _copy(params))
    if not places or rng.random() < 0.15:
        spoilt[noise.text(rng)] = noise.value(rng)
        return spoilt
    path = rng.choice(places)
    at: Any = spoilt
    for step in path[:-1]:
        at = at[step]
    last = path[-1]
    match rng.randrange(6):
        case 0 if isinstance(at, dict):
            del at[last]
        case 1:
            at[last] = noise.number(rng)
        case 2:
            at[last] = noise.text(rng)
        case 3:
            at[last] = noise.deep(rng.choice((2, 8, 30)))
        case 4:
            at[last] = [at[last]] * rng.choice((0, 2, 3))
        case _:
            at[last] = noise.value(rng)
    return spoilt


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        found: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        schema = found
    return schema


def _object(
    rng: random.Random, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int
) -> dict[str, Any]:
    required = schema.get("required", ())
    properties = cast("Mapping[str, Any]", schema.get("properties", {}))
    share = rng.random() if depth > 0 else 0.0
    made = {
        name: sample(rng, inner, root, depth - 1)
        for name, inner in properties.items()
        if name in required or rng.random() < share
    }
    more = schema.get("additionalProperties")
    if isinstance(more, Mapping) and depth > 0:
        for _ in range(rng.randrange(3)):
            made[rng.choice(_WORDS)] = sample(rng, cast("Mapping[str, Any]", more), root, depth - 1)
    return made


def _array(rng: random.Random, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> list[Any]:
    if "prefixItems" in schema:
        return [sample(rng, inner, root, depth - 1) for inner in schema["prefixItems"]]
    least = int(schema.get("minItems", 0))
    most = max(least, min(_LONGEST, int(schema.get("maxItems", _LONGEST))))
    return [sample(rng, schema.get("items", {}), root, depth - 1) for _ in range(rng.randint(least, most))]


def _string(rng: random.Random, schema: Mapping[str, Any]) -> str:
    made = rng.choice(_WORDS) if rng.random() < 0.7 else noise.text(rng)
    return made[: int(schema.get("maxLength", len(made)))]


def _number(rng: random.Random, schema: Mapping[str, Any], *, whole: bool) -> float:
    least = float(schema.get("minimum", schema.get("exclusiveMinimum", -2)))
    most = float(schema.get("maximum", schema.get("exclusiveMaximum", least + 8)))
    if rng.random() < 0.1:
        return rng.choice((least, most))
    near = min(most, least + 8)
    return rng.randint(int(least), int(near)) if whole else rng.uniform(least, near)


def _places(value: Any, path: tuple[Any, ...] = ()) -> "list[tuple[Any, ...]]":
    found = [path] if path else []
    if isinstance(value, dict):
        items: Sequence[tuple[Any, Any]] = list(cast("dict[str, Any]", value).items())
    elif isinstance(value, list):
        items = list(enumerate(cast("list[Any]", value)))
    else:
        return found
    return found + [place for key, inner in items for place in _places(inner, (*path, key))]


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_copy(inner) for inner in cast("list[Any]", value)]
    return value
