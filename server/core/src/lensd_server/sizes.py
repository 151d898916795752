"""Sizes of memory as an operator writes them: a number of bytes, or text such as "24 GiB"."""

import re
from collections.abc import Mapping
from typing import Annotated, cast

from pydantic import BeforeValidator, ByteSize, TypeAdapter, ValidationError

_DEVICE = re.compile(r"cpu|cuda(:(0|[1-9]\d*))?")
_BYTE_SIZE = TypeAdapter(ByteSize)


def _size(value: object) -> int:
    """A number of bytes, or text such as "24 GiB"."""
    try:
        size = 0 if isinstance(value, bool) else int(_BYTE_SIZE.validate_python(value))
    except ValidationError:
        size = 0
    if size <= 0:
        raise ValueError(f'{value!r} is no size: write one such as "8 GiB", or a number of bytes')
    return size


def _sizes(value: object) -> int | dict[str, int]:
    if not isinstance(value, Mapping):
        return _size(value)
    by_name = cast("Mapping[str, object]", value)
    for name in by_name:
        if not _DEVICE.fullmatch(name):
            raise ValueError(f"{name!r} is no device: name cpu, cuda for every GPU, or one as cuda:0")
    return {name: _size(size) for name, size in by_name.items()}


#: One size for each device, or sizes by the names of devices.
DeviceBytes = Annotated[int | dict[str, int], BeforeValidator(_sizes)]
