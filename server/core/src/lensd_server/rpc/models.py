"""Models as messages."""

from lensd_api.anatomy import Anatomy
from lensd_proto.v1 import models_pb2
from lensd_server.engine.events import ModelState, ModelStatus
from lensd_server.rpc.values import to_struct

STATES = {
    ModelState.COLD: models_pb2.MODEL_STATE_COLD,
    ModelState.LOADING: models_pb2.MODEL_STATE_LOADING,
    ModelState.RESIDENT: models_pb2.MODEL_STATE_RESIDENT,
    ModelState.DRAINING: models_pb2.MODEL_STATE_DRAINING,
    ModelState.FAILED: models_pb2.MODEL_STATE_FAILED,
}


def to_message(status: ModelStatus, *, with_anatomy: bool = False) -> models_pb2.Model:
    """``status`` as a message; the anatomy, which is long, only on request."""
    anatomy = status.anatomy
    return models_pb2.Model(
        name=status.name,
        source=status.source,
        state=STATES[status.state],
        revision=status.revision,
        architecture=anatomy.architecture if anatomy else "",
        device=status.device,
        dtype=status.dtype,
        resident_bytes=status.resident_bytes,
        reserved_bytes=status.reserved_bytes,
        parameters=status.parameters,
        context_length=anatomy.context_length if anatomy else 0,
        leases=status.leases,
        waiting=status.waiting,
        pinned=status.pinned,
        problem=status.problem,
        detail=status.detail,
        replicas=[
            models_pb2.Replica(
                state=STATES[replica.state],
                device=replica.device,
                leases=replica.leases,
                problem=replica.problem,
                detail=replica.detail,
            )
            for replica in status.replicas
        ],
        anatomy=to_struct(describe(anatomy)) if with_anatomy and anatomy else None,
    )


def describe(anatomy: Anatomy) -> dict[str, object]:
    """Sizes, and the units each layer can be split into, as JSON-like values."""
    norm = anatomy.final_norm
    return {
        "architecture": anatomy.architecture,
        "n_layers": anatomy.n_layers,
        "d_model": anatomy.d_model,
        "n_heads": anatomy.n_heads,
        "n_kv_heads": anatomy.n_kv_heads,
        "head_dim": anatomy.head_dim,
        "d_mlp": anatomy.d_mlp,
        "n_experts": anatomy.n_experts,
        "vocab_size": anatomy.vocab_size,
        "context_length": anatomy.context_length,
        "tied_embeddings": anatomy.tied_embeddings,
        "has_pos_embed": anatomy.has_pos_embed,
        "logit_scale": anatomy.logit_scale,
        "logit_softcap": anatomy.logit_softcap,
        "units": sorted(anatomy.units),
        "final_norm": None
        if norm is None
        else {
            "centre": norm.centre,
            "gain": norm.gain,
            "has_bias": norm.has_bias,
            "eps": norm.eps,
            "max_error": norm.max_error,
        },
        "layers": [
            {
                "units": sorted(layer.units),
                "refused": {unit.value: why for unit, why in layer.refused.items()},
                "max_error": {unit.value: error for unit, error in layer.max_error.items()},
            }
            for layer in anatomy.layers
        ],
    }
