"""Prompts that differ from their first word on, so that neither results nor prefixes can be reused."""

import random
from collections.abc import Iterator

#: Each is one token of SmolLM2, with a leading space and without: all prompts have the same length.
_TEXT = (
    "time people water house school money music paper river world light story night table horse field "
    "winter summer doctor letter market window father mother brother teacher country city "
    "street church forest ocean bridge train flower animal bird fish bread milk sugar "
    "green black white small large young early quick strong open cold warm deep high long short heavy"
)
WORDS = _TEXT.split()


def distinct_prompts(words: int, seed: int) -> Iterator[str]:
    """Endless prompts of ``words`` words, never the same twice in one iterator."""
    draw = random.Random(seed)
    seen: set[tuple[str, ...]] = set()
    while True:
        chosen = tuple(draw.choices(WORDS, k=words))
        if chosen not in seen:
            seen.add(chosen)
            yield " ".join(chosen)
