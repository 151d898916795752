"""What saving a forward is worth is measured once and stays within bounds."""

from pathlib import Path
from typing import Any

import pytest

from lensd_server.engine.batching import price
from lensd_server.engine.batching.price import LEAST, Prices


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends forwards take ``fixed + slope * tokens``; counts them."""

    class Timed:
        fixed, slope, forwards = 0.066, 0.00163, 0

        def __call__(self, model: Any, device: Any, length: int) -> float:
            self.forwards += 1
            return self.fixed + self.slope * length

    fake = Timed()
    monkeypatch.setattr(price, "time_forward", fake)
    return fake


def worth(prices: Prices, tiny: Any) -> float:
    loaded = tiny("llama")
    return prices.worth(loaded.model, loaded.device, "revision")


def test_worth_is_the_fixed_price_in_tokens(tiny: Any, timed: Any) -> None:
    assert worth(Prices(), tiny) == pytest.approx(0.066 / 0.00163)


@pytest.mark.parametrize(
    ("fixed", "slope", "expected"), [(0.0, 1.0, LEAST), (1.0, 0.0, 128.0), (9.0, 1e-9, 128.0)]
)
def test_an_odd_measurement_stays_within_bounds(
    tiny: Any, timed: Any, fixed: float, slope: float, expected: float
) -> None:
    timed.fixed, timed.slope = fixed, slope
    assert worth(Prices(), tiny) == expected


def test_a_measurement_is_remembered(tiny: Any, timed: Any, tmp_path: Path) -> None:
    first = worth(Prices(tmp_path), tiny)
    count = timed.forwards
    assert worth(Prices(tmp_path), tiny) == first
    assert timed.forwards == count


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"worth": "x"}', b'{"worth": 1e9}', b'{"worth": null}'])
def test_a_damaged_memory_is_measured_again(tiny: Any, timed: Any, tmp_path: Path, damage: bytes) -> None:
    first = worth(Prices(tmp_path), tiny)
    for memo in tmp_path.iterdir():
        memo.write_bytes(damage)
    assert worth(Prices(tmp_path), tiny) == first


def test_a_real_model_has_a_price(tiny: Any) -> None:
    loaded = tiny("gpt2")
    assert LEAST <= price.measure(loaded.model, loaded.device) <= 128.0
