"""What is loaded: a model, the flags that serve it, and how its tokens relate to words."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lensd_server.settings import EMBEDDED_NAME
from tests.bench.prompts import WORDS
from tests.e2e.daemon import Daemon, running_daemon


@dataclass(frozen=True, slots=True)
class Subject:
    """A served model. ``words_a_token`` is below 1 for a tokenizer that splits words."""

    model: str
    words_a_token: float
    #: Longest prompt, in tokens, that leaves room for what analyzers add.
    longest: int

    def text(self, tokens: int, draw: random.Random) -> str:
        """A text of about ``tokens`` tokens (exactly, where words are tokens)."""
        words = max(1, round(min(tokens, self.longest) * self.words_a_token))
        return " ".join(draw.choices(WORDS, k=words))


SMOLLM2 = Subject(EMBEDDED_NAME, words_a_token=1.0, longest=1024)
#: Three layers of 64; its tokenizer knows few words, so most take several tokens.
TINY = Subject("tiny", words_a_token=0.2, longest=96)


@contextmanager
def served(subject: Subject, folder: Path, *flags: str, **environment: str) -> Iterator[Daemon]:
    """A daemon that serves ``subject``, with state below ``folder``."""
    model = []
    if subject is TINY:
        model = ["--model", f"{TINY.model}=dir:{save_tiny(folder / 'model')}"]
    with running_daemon(folder, *model, *flags, environment=environment) as daemon:
        yield daemon


def save_tiny(folder: Path) -> Path:
    """Writes the tiny model where a daemon can load it."""
    from lensd_server.tiny_models import tiny_model, tiny_tokenizer

    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
