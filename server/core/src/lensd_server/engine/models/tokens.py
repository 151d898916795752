"""The tokenizer of a resident model, with errors that name the caller's field."""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from operator import index
from typing import Any

from transformers import PreTrainedTokenizerBase

from lensd_api import InvalidParams, RequirementNotMet

#: Texts whose tokens are remembered, and the characters of one, at most: an analyzer asks for those of a prompt when
#: it estimates what an analysis takes, and again when it runs. A few megabytes.
_TEXTS, _TEXT_LENGTH = 256, 1024
#: Tokens whose text is remembered.
_TOKENS = 4096


class Tokens:
    """Text to token ids and back. Special tokens such as BOS follow the tokenizer's own default."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._remembered = lru_cache(_TEXTS)(partial(_ids_of, tokenizer))
        self._text_of = lru_cache(_TOKENS)(partial(_text_of, tokenizer))

    def encode(self, text: str, *, special_tokens: bool, field: str) -> tuple[int, ...]:
        """See :meth:`lensd_api.ModelCard.encode`."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidParams.field(field, f"character {error.start} is not valid Unicode") from None
        if len(text) > _TEXT_LENGTH:
            return self._fitting(_ids_of(self._tokenizer, text, special_tokens), field)
        return self._fitting(self._remembered(text, special_tokens), field)

    def decode(self, tokens: Sequence[int]) -> str:
        """See :meth:`lensd_api.ModelCard.decode`."""
        return _decoded(self._tokenizer, tokens)

    def token_text(self, token: int) -> str:
        """See :meth:`lensd_api.ModelCard.token_text`."""
        return self._text_of(index(token))

    def encode_chat(self, messages: Sequence[Mapping[str, str]], *, field: str) -> tuple[int, ...]:
        """See :meth:`lensd_api.ModelCard.encode_chat`."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise RequirementNotMet("the model's tokenizer has no chat template; send `prompt` instead")
        try:
            ids: Any = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        except Exception as error:  # the template is the checkpoint's code, and refuses as it likes
            raise InvalidParams.field(
                field, "the model's chat template refuses these messages; check roles and their order"
            ) from error
        return self._fitting(ids, field)

    def _fitting(self, ids: Sequence[int], field: str) -> tuple[int, ...]:
        if not ids:
            raise InvalidParams.field(field, "holds no token; send some text", reason="EMPTY_PROMPT")
        if len(ids) > self._context_length:
            raise InvalidParams.field(
                field,
                f"has {len(ids)} tokens, but the model's context holds {self._context_length}; shorten it",
                reason="CONTEXT_EXCEEDED",
            )
        return tuple(ids)


def _ids_of(tokenizer: PreTrainedTokenizerBase, text: str, special_tokens: bool) -> tuple[int, ...]:
    ids: Any = tokenizer.encode(text, add_special_tokens=special_tokens, verbose=False)
    return tuple(ids)


def _decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _text_of(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    text = _decoded(tokenizer, [token])
    # SentencePiece tokenizers strip the space of the first token they decode.
    spelled: Any = tokenizer.convert_ids_to_tokens(token)
    if isinstance(spelled, str) and spelled.startswith("▁") and not text.startswith(" "):
        return " " + text
    return text
