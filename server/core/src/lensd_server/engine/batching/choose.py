"""Which waiting rows run together. Pure.

A batch is padded to its longest row, so what it costs is rows times that length. Running rows together
saves the fixed price of a forward and pays for padding: a row joins only where that costs no more than
running it alone. Nor where it would cost the batch tokens a second while others wait that are still less alike:
it is better company for those.
"""

from collections.abc import Sequence

from lensd_server.engine.batching.price import Price

#: How much dearer each of its tokens may become by a row that joins a batch. At none at all batches of nearly
#: equal rows would be torn apart; simulated with lengths from 8 to 512 and 4 to 64 callers, this is the quickest.
DEARER = 1.02


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
    tokens = sum(lengths[i] for i in chosen)

    def padding(n: int, *, is_last: bool) -> int | None:
        """Padded tokens that the ``n``-th row would add; ``None`` when it may not join."""
        if not 0 <= n < len(by_length):
            return None
        own = lengths[by_length[n]]
        before, after = len(chosen) * longest, (len(chosen) + 1) * max(longest, own)
        if after > budget:
            return None
        now, then = price.seconds(before), price.seconds(after)
        worth_it = is_last or then * tokens <= DEARER * now * (tokens + own)
        return after - before - own if worth_it and then - now <= price.seconds(own) else None

    # Everything before `shorter` is at most as long as the batch already is.
    longer = next((n for n, i in enumerate(by_length) if lengths[i] >= longest), len(by_length))
    shorter = longer - 1
    while True:
        up = padding(longer, is_last=longer == len(by_length) - 1)
        down = padding(shorter, is_last=shorter == 0)
        if up is not None and (down is None or up <= down):
            longest = max(longest, lengths[by_length[longer]])
            joining, longer = by_length[longer], longer + 1
        elif down is not None:
            joining, shorter = by_length[shorter], shorter - 1
        else:
            return longest
        chosen.append(joining)
        tokens += lengths[joining]
