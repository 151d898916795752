"""Which waiting rows run together. Pure.

A batch is padded to its longest row, so what it costs is rows times that length. Running rows
together saves the fixed price of a forward and pays for padding: a row joins only if the padding it
adds is worth less than the forward it saves.
"""

from collections.abc import Sequence


def choose_rows(lengths: Sequence[int], levels: Sequence[int], budget: int, worth: float) -> list[int]:
    """Indices of the rows of the next batch; the rows are given in the order of their turns.

    The first row is always in, so that none waits for ever. Around it, rows of similar length are
    taken while ``rows * longest <= budget`` and each adds at most ``worth`` tokens of padding: first
    those of the lowest level, then those of the next.
    """
    chosen = [0]
    longest = lengths[0]
    for level in sorted(set(levels)):
        pool = [i for i in range(1, len(lengths)) if levels[i] == level]
        longest = _join(chosen, longest, sorted(pool, key=lambda i: (lengths[i], i)), lengths, budget, worth)
    return sorted(chosen)


def _join(
    chosen: list[int],
    longest: int,
    by_length: Sequence[int],
    lengths: Sequence[int],
    budget: int,
    worth: float,
) -> int:
    """Adds to ``chosen`` from ``by_length``, nearest in length first; returns the longest row."""
    # Everything before `shorter` is at most as long as the batch already is.
    longer = next((n for n, i in enumerate(by_length) if lengths[i] >= longest), len(by_length))
    shorter = longer - 1
    while True:
        down = longest - lengths[by_length[shorter]] if shorter >= 0 else None
        up = len(chosen) * (lengths[by_length[longer]] - longest) if longer < len(by_length) else None
        if up is not None and (len(chosen) + 1) * lengths[by_length[longer]] > budget:
            up = None
        if (len(chosen) + 1) * longest > budget:
            down = None
        if up is not None and (down is None or up <= down) and up <= worth:
            longest = max(longest, lengths[by_length[longer]])
            chosen.append(by_length[longer])
            longer += 1
        elif down is not None and down <= worth:
            chosen.append(by_length[shorter])
            shorter -= 1
        else:
            return longest
