"""A small corpus of common knowledge, written for this plugin: enough to fit a probe without any download."""

from itertools import permutations

Pairs = tuple[tuple[str, str], ...]

RELATIONS: dict[str, Pairs] = {
    "capital": (
        ("France", "Paris"),
        ("Italy", "Rome"),
        ("Spain", "Madrid"),
        ("Germany", "Berlin"),
        ("Japan", "Tokyo"),
        ("Egypt", "Cairo"),
        ("Russia", "Moscow"),
        ("China", "Beijing"),
        ("Greece", "Athens"),
        ("Norway", "Oslo"),
        ("Cuba", "Havana"),
        ("Peru", "Lima"),
        ("Austria", "Vienna"),
        ("Ireland", "Dublin"),
        ("Portugal", "Lisbon"),
        ("Kenya", "Nairobi"),
    ),
    "currency": (
        ("Denmark", "krone"),
        ("Mexico", "peso"),
        ("Japan", "yen"),
        ("India", "rupee"),
        ("Brazil", "real"),
        ("Russia", "ruble"),
        ("Poland", "zloty"),
        ("Hungary", "forint"),
        ("Thailand", "baht"),
        ("Vietnam", "dong"),
        ("Israel", "shekel"),
        ("Turkey", "lira"),
        ("China", "yuan"),
        ("Switzerland", "franc"),
    ),
    "opposite": (
        ("hot", "cold"),
        ("big", "small"),
        ("fast", "slow"),
        ("early", "late"),
        ("light", "dark"),
        ("high", "low"),
        ("open", "closed"),
        ("rich", "poor"),
        ("young", "old"),
        ("wet", "dry"),
        ("loud", "quiet"),
        ("full", "empty"),
        ("hard", "soft"),
        ("happy", "sad"),
    ),
    "past": (
        ("go", "went"),
        ("see", "saw"),
        ("take", "took"),
        ("give", "gave"),
        ("run", "ran"),
        ("write", "wrote"),
        ("speak", "spoke"),
        ("know", "knew"),
        ("eat", "ate"),
        ("think", "thought"),
        ("buy", "bought"),
        ("sing", "sang"),
    ),
    "young": (
        ("dog", "puppy"),
        ("cat", "kitten"),
        ("cow", "calf"),
        ("sheep", "lamb"),
        ("horse", "foal"),
        ("hen", "chick"),
        ("duck", "duckling"),
        ("goat", "kid"),
        ("pig", "piglet"),
        ("bear", "cub"),
    ),
}


def analogies(relation: str | None = None) -> list[tuple[str, str, str, str]]:
    """A, B, C, D for every two pairs of one relation, in both orders; all relations by default."""
    chosen = RELATIONS.values() if relation is None else [RELATIONS[relation]]
    return [(*left, *right) for pairs in chosen for left, right in permutations(pairs, 2)]
