"""From a prompt to the concepts it names: given by the caller, or found in the places of the template."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from lensd_api import InvalidParams
from lensd_vsa_probe.codebook import Codebook
from lensd_vsa_probe.corpus import concept, split_template
from lensd_vsa_probe.params import ItemsParams, ProbeParams


def items_of(params: ProbeParams, number: int, template: str, codebook: Codebook) -> ItemsParams | None:
    """``None`` where the probe was fitted on texts as they are and no items are given.

    Raises InvalidParams when the prompt does not follow the template, or names what is no concept.
    """
    field = f"prompts[{number}]"
    if params.items is not None:
        items, field = params.items[number], f"items[{number}]"
    elif template:
        items = parse(template, params.prompts[number], field)
    else:
        return None
    for word in items.named():
        check_concept(word, codebook, field)
    return items


def parse(template: str, prompt: str, field: str) -> ItemsParams:
    """Reads A, B and C from the places of ``template``. Raises InvalidParams."""
    # Everything but the places is escaped, so nothing a caller wrote is a pattern.
    pattern = "".join(
        "(.+?)" if piece in ("{a}", "{b}", "{c}") else re.escape(piece) for piece in split_template(template)
    )
    found = re.fullmatch(pattern, prompt, re.DOTALL)
    if found is None:
        raise InvalidParams.field(field, f"does not follow the probe's template {template!r}; give items")
    a, b, c = (word.strip() for word in found.groups())
    if not (a and b and c):
        raise InvalidParams.field(field, f"a place of the template {template!r} is empty")
    return ItemsParams(example_key=a, example_value=b, key=c)


def check_concept(word: str, codebook: Codebook, field: str) -> None:
    """Raises InvalidParams, with the nearest concepts, unless the probe knows ``word``."""
    if word in codebook:
        return
    near: Sequence[str] = get_close_matches(concept(word), codebook.concepts, n=3)
    hint = f"; near it are {', '.join(near)}" if near else ""
    raise InvalidParams.field(
        field, f"{word!r} is no concept of this probe, which knows {len(codebook)}{hint}"
    )
