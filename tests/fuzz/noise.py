"""Values that programs trip over: text, numbers, nesting, and bytes that are almost a message."""

import random
from collections.abc import Callable
from typing import Any

NAMES = (
    "../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "C:\\x", "~root", "model.pkl", "weights.pickle",
    "{{7*7}}", "${HOME}", "$(id)", "%s%n", "x\0y", "llama\n", " llama", "LLAMA", "nobody@1", "nobody@0",
    "nobody@-1", "nobody@99999999999999999999", "@", "a@b@c", "dir:/tmp", "hf:org/name", "-", "--help",
    "a" * 128, "a" * 129, "a" * 5000, "\u202e", "\u0130", "ｌｌａｍａ", "lensd-dla:dla", "lensd-dla:", ":dla",
    "nobody:dla", "__class__", "constructor", "None", "con", "'; drop table models; --",
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "\0", "a", "\ud7ff", "\U0010ffff", "\ufeff", "e\u0301" * 40, "\u202eabc", "👩‍👩‍👧‍👦",
    "<|endoftext|>", "<s>", "</s>", "The capital of France is", "{", "null", "NaN", "0", "x" * 3000,
)  # fmt: skip
NUMBERS: tuple[float, ...] = (
    0.0, -0.0, 1.0, -1.0, 2.0, 3.0, 7.0, 0.5, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"),
    2.0**31, 2.0**32, 2.0**53, 2.0**63, -(2.0**63), 2.0**64, 1e18, 255.0, 256.0, 65536.0,
)  # fmt: skip


def text(rng: random.Random) -> str:
    """Any text."""
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(TEXTS)
    if kind < 0.8:
        return rng.choice(NAMES)
    return "".join(
        chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xD7FF)))) for _ in range(rng.randrange(20))
    )


def number(rng: random.Random) -> float:
    """Any number."""
    return rng.choice(NUMBERS) if rng.random() < 0.7 else rng.uniform(-10, 10)


def value(rng: random.Random, depth: int = 3) -> Any:
    """Any JSON-like value."""
    leaves: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: number(rng),
        lambda: text(rng),
    )
    if depth == 0 or rng.random() < 0.6:
        return rng.choice(leaves)()
    if rng.random() < 0.5:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {text(rng): value(rng, depth - 1) for _ in range(rng.randrange(4))}


def deep(depth: int) -> Any:
    """Lists and objects in one another."""
    nested: Any = 1.0
    for level in range(depth):
        nested = [nested] if level % 2 else {"a": nested}
    return nested


def almost(rng: random.Random, raw: bytes) -> bytes:
    """``raw`` cut, with bytes changed, doubled or strange ones added."""
    match rng.randrange(6):
        case 0:
            return raw[: rng.randrange(len(raw) + 1)]
        case 1:
            changed = bytearray(raw or b"\0")
            for _ in range(rng.randrange(1, 4)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)
        case 2:
            return raw + raw
        case 3:  # a field nobody knows, in front and behind
            unknown = b"\xfa\x3e\x03abc"
            return unknown + raw + unknown
        case 4:
            # Field 1 as text that is not UTF-8.
            return raw + b"\x0a\x02\xc3\x28"
        case _:
            return rng.randbytes(rng.randrange(64))
