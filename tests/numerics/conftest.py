"""Tiny models, each built and inspected once."""

from collections.abc import Callable
from functools import cache

import pytest

from lensd_server.tiny_models import TINY, tiny_tokenizer
from tests.numerics.direct import DirectModel
from tests.numerics.oracle import Oracle

TEXT = "When Mary and John went to the store"


@cache
def direct_model(name: str) -> DirectModel:
    return DirectModel.of(TINY[name](), tiny_tokenizer())


@cache
def oracle_of(name: str) -> Oracle:
    return Oracle(name, TINY[name](), direct_model(name).encode(TEXT))


@pytest.fixture
def model_of() -> Callable[[str], DirectModel]:
    return direct_model


@pytest.fixture
def oracle_for() -> Callable[[str], Oracle]:
    return oracle_of
