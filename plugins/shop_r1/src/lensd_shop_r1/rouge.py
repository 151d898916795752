"""ROUGE-L of short texts: F-measure of the longest common subsequence of lower-cased words.

Words are what white space separates. The default tokenizer of the usual package drops punctuation
and every letter outside ASCII, and would call two different Japanese product names equal: both empty.
Source: Lin 2004, *ROUGE: A Package for Automatic Evaluation of Summaries*.
"""

from rapidfuzz.distance import LCSseq


def words(text: str) -> list[str]:
    """The tokens that are compared."""
    return text.lower().split()


def rouge_l(prediction: str, reference: str) -> float:
    """F-measure in [0, 1]; 0 when either text has no word."""
    left, right = words(prediction), words(reference)
    if not left or not right:
        return 0.0
    # Numbers stand for words: equal exactly when the words are, which hashes of strings are not.
    numbers: dict[str, int] = {}
    for word in right:
        numbers.setdefault(word, len(numbers))
    unknown = len(numbers)
    common = LCSseq.similarity(
        [numbers.get(word, unknown) for word in left], [numbers[word] for word in right]
    )
    # 2PR / (P + R) without its rounding, which would put 3 of 5 words just below a threshold of 0.75.
    return 2 * common / (len(left) + len(right))
