"""What enters the first block: token and learned position embeddings, told apart where they add up."""

from dataclasses import dataclass

from torch import nn

from lensd_server.engine.anatomy.identity import deviation, tolerance
from lensd_server.engine.anatomy.probe import Trace
from lensd_server.engine.anatomy.skeleton import Skeleton


@dataclass(frozen=True, slots=True)
class Embeddings:
    """``position`` is ``None`` where positions are not learned or do not simply add.

    The token embedding is then the whole input of block 0, whatever scale or norm was applied.
    """

    token: nn.Module
    position: nn.Module | None


def derive_embeddings(skeleton: Skeleton, trace: Trace) -> Embeddings:
    """Finds a position embedding which, added to the token embedding, gives block 0's input."""
    token = trace.outer[skeleton.token_embedding].output
    entry = trace.blocks[0].entry
    for module in skeleton.decoder.children():
        call = trace.outer.get(module)
        if call is None or module is skeleton.token_embedding or not isinstance(module, nn.Embedding):
            continue
        if not call.output.shape == token.shape == entry.shape:
            continue
        if deviation(token + call.output, entry, token, call.output) <= tolerance(skeleton.dtype):
            return Embeddings(skeleton.token_embedding, module)
    return Embeddings(skeleton.token_embedding, None)
