"""Messages: any of any type from its descriptor, and analyses that have a chance to be one."""

import math
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value

from lensd_proto.v1 import analysis_pb2, results_pb2
from tests.fuzz import noise, schemas

_INTEGERS = (0, 1, -1, 2, 5, 127, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
_SIZES = {1: 2, 2: 2, 3: 4, 4: 8, 5: 1, 6: 2, 7: 4, 8: 8, 9: 1, 10: 1}

#: How often to ask for what trains, which takes seconds, beside the others.
_FITS = 0.1
_SHAPES: tuple[list[int], ...] = (
    [], [0], [1], [0, 2**62], [2**63, 2], [2**64 - 1], [2**32, 2**32], [1] * 8, [1] * 9, [2] * 40,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Analyzer:
    """What is known of an analyzer before it is fuzzed."""

    name: str
    schema: Mapping[str, Any]
    examples: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class World:
    """What the daemon has. ``busy`` is the model that most analyses ask for, ``spare`` the one that comes and goes."""

    analyzers: tuple[Analyzer, ...]
    busy: str
    spare: str
    width: int


def anything(rng: random.Random, kind: type[Message], depth: int = 3) -> Message:
    """A message with arbitrary fields set to arbitrary values of their types."""
    message = kind()
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue  # `tensors` has its own generator
        if field.message_type is not None:
            if depth == 0:
                continue
            inner = type(getattr(message, field.name)) if not field.is_repeated else None
            if inner is Struct:
                _put_fields(getattr(message, field.name), {"a": noise.value(rng)})
            elif inner is not None:
                getattr(message, field.name).CopyFrom(anything(rng, inner, depth - 1))
        elif field.is_repeated:
            getattr(message, field.name).extend(_scalar(rng, field) for _ in range(rng.randrange(4)))
        else:
            setattr(message, field.name, _scalar(rng, field))
    return message


def named(rng: random.Random, world: World, kind: type[Message]) -> Message:
    """A message whose name or identifier may well exist; one that has neither is left empty."""
    message: Any = kind()
    for field in kind.DESCRIPTOR.fields:
        if field.name in ("name", "service"):
            known = (world.busy, world.spare, *(a.name for a in world.analyzers), "fuzzed", "fuzzed@1", "")
            setattr(message, field.name, rng.choice(known) if rng.random() < 0.5 else rng.choice(noise.NAMES))
        elif field.name == "request_id":
            setattr(message, field.name, f"fuzz-{rng.randrange(300)}")
    return message


def analysis(rng: random.Random, world: World, *, sound: float = 0.08) -> analysis_pb2.AnalyzeRequest:
    """A request for an analysis: with probability ``sound`` one that nothing was done to."""
    analyzer = rng.choices(
        world.analyzers, [_FITS if a.name.endswith("-fit") else 1.0 for a in world.analyzers]
    )[0]
    intact = rng.random() < sound
    if analyzer.examples and rng.random() < 0.6:
        params = dict(rng.choice(analyzer.examples))
    else:
        params = schemas.sample(rng, analyzer.schema, analyzer.schema)
    for _ in range(0 if intact else rng.choice((1, 2, 3, 5))):
        params = schemas.spoil(rng, params)
    request = analysis_pb2.AnalyzeRequest(
        request_id=f"fuzz-{rng.randrange(300)}",
        model=world.busy,
        analyzer=analyzer.name,
        priority=rng.choice((0, 0, 1, 2)),  # pyright: ignore[reportArgumentType]
    )
    # Filled in place: what is nested too deeply to be read could not be copied either.
    _put_fields(request.params, params)
    if rng.random() < 0.2 or "direction" in params:
        name = params.get("direction", "direction")
        key = name if intact and isinstance(name, str) else noise.text(rng)
        request.tensors[key].CopyFrom(_tensor(rng, world.width, intact=intact))
    if not intact and rng.random() < 0.4:
        _spoil_envelope(rng, request)
    return request


def _spoil_envelope(rng: random.Random, request: analysis_pb2.AnalyzeRequest) -> None:
    match rng.randrange(6):
        case 0:
            request.model = rng.choice(noise.NAMES)
        case 1:
            request.analyzer = rng.choice(noise.NAMES)
        case 2:
            request.request_id = noise.text(rng)
        case 3:
            request.priority = rng.choice((3, -1, 2**31 - 1))  # pyright: ignore[reportAttributeAccessIssue]
        case 4:
            request.timeout.seconds = rng.choice((0, -1, 1, 2**63 - 1, -(2**63), 315_576_000_000))
            request.timeout.nanos = rng.choice((0, 1, -1, 2**31 - 1, -(2**31)))
        case _:
            request.params.Clear()
            _put_fields(request.params, {"prompt": noise.deep(rng.choice((5, 20, 30, 33, 49, 60)))})


def _tensor(rng: random.Random, width: int, *, intact: bool) -> results_pb2.Tensor:
    shape = [width]
    dtype = rng.choice((1, 2, 3, 4)) if intact else rng.choice((*_SIZES, 0, 11, -1, 2**31 - 1))
    if not intact:
        shape = rng.choice((*_SHAPES, [width], [width + 1], [2, width]))
    size = math.prod(shape) * _SIZES.get(dtype, 4)
    if size > 4096:
        size = rng.choice((0, 4, 64))
    elif not intact and rng.random() < 0.3:
        size = max(0, size + rng.choice((-1, 1, 4)))
    data = rng.randbytes(size)
    if dtype == 3 and size == 4 * width:
        odd = () if intact else (float("nan"), float("inf"), 3e38)
        numbers = [rng.choice((rng.gauss(0, 1), *odd)) for _ in range(width)]
        data = struct.pack(f"<{width}f", *numbers)
    tensor = results_pb2.Tensor(dtype=dtype, shape=shape, data=data)  # pyright: ignore[reportArgumentType]
    if not intact and rng.random() < 0.3:
        tensor.byte_length = rng.choice((1, size, 2**63, 2**64 - 1))
        tensor.axes.add(name=noise.text(rng), labels=[noise.text(rng)])
    return tensor


def _put_fields(target: Struct, values: Mapping[str, Any]) -> None:
    target.SetInParent()
    for key, inner in values.items():
        _put(target.fields[key], inner)


def _put(target: Value, inner: Any) -> None:
    match inner:
        case None:
            target.null_value = 0  # pyright: ignore[reportAttributeAccessIssue]
        case bool():
            target.bool_value = inner
        case int() | float():
            target.number_value = inner
        case str():
            target.string_value = inner
        case dict():
            _put_fields(target.struct_value, cast("dict[str, Any]", inner))
        case _:
            target.list_value.SetInParent()
            for item in inner:
                _put(target.list_value.values.add(), item)


def _scalar(rng: random.Random, field: Any) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return noise.text(rng) if field.type == FieldDescriptor.TYPE_STRING else rng.randbytes(8)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return noise.number(rng)
        case kind:
            least, most = _BITS[kind]
            return rng.choice([n for n in _INTEGERS if least <= n <= most])
