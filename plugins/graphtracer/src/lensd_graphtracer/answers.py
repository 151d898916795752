"""Whether a text says an answer: whole words, numbers compared as numbers."""

from lensd_graphtracer.references import words_of


def mentions(text: str, answer: str) -> bool:
    """Whether the words of ``answer`` stand in ``text`` next to each other, in their order."""
    wanted = words_of(answer)
    if not wanted:
        return answer.strip() != "" and answer.strip() in text
    words = words_of(text.replace(",", ""))
    wanted = words_of(answer.replace(",", ""))
    joined = " " + " ".join(words) + " "
    return f" {' '.join(wanted)} " in joined
