"""Counts tokens: the smallest useful analyzer, and what each of its lines is for."""

from collections.abc import AsyncIterator, Sequence

from pydantic import Field

from lensd_api import Analyzer, BaseParams, Context, Example, Result, ResultSpec, Table, hookimpl

__all__ = ["TokenCount", "lensd_analyzers"]


class TokenCount(Analyzer):
    """Counts tokens: the smallest useful analyzer."""

    name = "token-count"
    results = (ResultSpec("tokens", "table", "How many tokens the prompt has."),)
    examples = (Example("hello", "How many tokens a short greeting is.", {"prompt": "Hello, world"}),)

    class Params(BaseParams):
        """What a caller may send."""

        prompt: str = Field(min_length=1, description="Text to tokenise.")

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        """Yields one table with one number."""
        ids = ctx.model.encode(params.prompt)
        yield Table("tokens", columns={"count": [len(ids)]})


@hookimpl
def lensd_analyzers() -> Sequence[Analyzer]:
    """Tells the server what this plugin offers."""
    return [TokenCount()]
