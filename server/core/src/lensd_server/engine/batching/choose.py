"""Which waiting rows run together. Pure.

A batch is padded to its longest row, so what it costs is rows times that length. Running rows together
saves the fixed price of a forward and pays for padding: a row joins only where that costs no more than
running it alone.
"""

from collections.abc import Sequence

from lensd_server.engine.batching.price import Price


def choose_rows(
    lengths: Sequence[int], levels: Sequence[int], budgets: Sequence[int], price: Price
) -> list[int]:
    """Indices of the rows of the next batch; the rows are given in the order of their turns.

    The first row is always in, so that none waits for ever. Around it, rows of similar length are
    taken: first those of level 0, then those of the next. Rows of a level join while
    ``rows * longest`` stays within the level's budget, and where joining is no dearer than running alone.
    """
    chosen = [0]
    longest = lengths[0]
    for level in sorted(set(levels)):
        pool = [i for i in range(1, len(lengths)) if levels[i] == level]
        by_length = sorted(pool, key=lambda i: (lengths[i], i))
        longest = _join(chosen, longest, by_length, lengths, budgets[level], price)
    return sorted(chosen)


def _join(
    chosen: list[int],
    longest: int,
    by_length: Sequence[int],
    lengths: Sequence[int],
    budget: int,
    price: Price,
) -> int:
    """Adds to ``chosen`` from ``by_length``, nearest in length first; returns the longest row."""

    def padding(n: int) -> int | None:
        """Padded tokens that the ``n``-th row would add; ``None`` when it may not join."""
        if not 0 <= n < len(by_length):
            return None
        own = lengths[by_length[n]]
        before, after = len(chosen) * longest, (len(chosen) + 1) * max(longest, own)
        joins = after <= budget and price.seconds(after) - price.seconds(before) <= price.seconds(own)
        return after - before - own if joins else None

    # Everything before `shorter` is at most as long as the batch already is.
    longer = next((n for n, i in enumerate(by_length) if lengths[i] >= longest), len(by_length))
    shorter = longer - 1
    while True:
        up, down = padding(longer), padding(shorter)
        if up is not None and (down is None or up <= down):
            longest = max(longest, lengths[by_length[longer]])
            chosen.append(by_length[longer])
            longer += 1
        elif down is not None:
            chosen.append(by_length[shorter])
            shorter -= 1
        else:
            return longest
