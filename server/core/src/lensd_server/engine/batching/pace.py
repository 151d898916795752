"""How fast one model is served now: its price, corrected by what batches really take."""

from lensd_server.engine.batching.price import Price

#: How much of the latest batch goes into the correction.
_NEWEST = 0.1
#: One batch that was held up by something else counts no more than this many times its price.
_WORST = 20.0


class Pace:
    """``drift`` is what a batch takes over what its forward was measured to take: captures, reduces
    and busy cores come on top. Not safe by itself."""

    def __init__(self, price: Price) -> None:
        self._price = price
        self.drift = 1.0

    def ran(self, tokens: int, seconds: float) -> None:
        """A batch of ``tokens`` padded tokens took ``seconds``."""
        expected = self._price.seconds(tokens)
        if expected > 0.0:
            self.drift += _NEWEST * (min(_WORST, seconds / expected) - self.drift)

    def seconds(self, tokens: int, batch_tokens: int) -> float:
        """What ``tokens`` take in batches of at most ``batch_tokens``."""
        batches, rest = divmod(max(0, tokens), batch_tokens)
        whole = batches * self._price.seconds(batch_tokens)
        return self.drift * (whole + (self._price.seconds(rest) if rest else 0.0))
