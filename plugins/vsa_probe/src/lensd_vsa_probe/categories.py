"""What a decoded concept is to the text it was decoded from."""

from collections.abc import Mapping

from lensd_vsa_probe.corpus import concept
from lensd_vsa_probe.params import ItemsParams


def of_analogy(name: str, items: ItemsParams | None, target: str, related: Mapping[str, set[str]]) -> str:
    """target, key, example, related (in a pair with one of the text's items) or out-of-context."""
    named = (
        {} if items is None else {"key": (items.key,), "example": (items.example_key, items.example_value)}
    )
    if target and name == concept(target):
        return "target"
    for category, words in named.items():
        if name in {concept(word) for word in words if word is not None}:
            return category
    around = {concept(word) for words in named.values() for word in words if word is not None}
    return "related" if any(name in related.get(word, ()) for word in around) else "out-of-context"


def of_text(name: str, target: str, question: str, answer: str) -> str:
    """target, question or answer (the text that holds the word) or other."""
    if target and name == concept(target):
        return "target"
    if name in question.lower():
        return "question"
    return "answer" if answer and name in answer.lower() else "other"
