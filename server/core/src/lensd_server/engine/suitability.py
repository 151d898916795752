"""Whether a model can serve an analysis, and which model that is. Pure."""

from collections.abc import Sequence

from lensd_api import Anatomy, InvalidRequest, RequirementNotMet, Requirements


def choose_model(named: str, needs: Requirements, configured: Sequence[str]) -> str:
    """The model to use; empty for none. Raises InvalidRequest when the caller has to choose."""
    if named or not needs.model:
        return named
    if len(configured) == 1:
        return configured[0]
    if not configured:
        raise RequirementNotMet("this analyzer needs a model, and the server has none configured")
    raise InvalidRequest(f"name a model: the server has {', '.join(configured)}", reason="MODEL_NOT_NAMED")


def unmet(needs: Requirements, anatomy: Anatomy) -> list[str]:
    """Why a model cannot serve ``needs``, a sentence each; empty when it can."""
    reasons: list[str] = []
    for unit in sorted(needs.units - anatomy.units):
        lacking = [i for i, layer in enumerate(anatomy.layers) if unit not in layer.units]
        why = next((r for i in lacking if (r := anatomy.layers[i].refused.get(unit))), "not offered")
        where = "every layer" if len(lacking) == anatomy.n_layers else f"{len(lacking)} of its layers"
        reasons.append(f"{anatomy.architecture} does not offer unit {unit.value!r} in {where}: {why}")
    return reasons


def require(needs: Requirements, anatomy: Anatomy, model: str) -> None:
    """Raises RequirementNotMet with the reasons."""
    if reasons := unmet(needs, anatomy):
        raise RequirementNotMet(
            f"model {model} cannot serve this: {'; '.join(reasons)}", metadata={"model": model}
        )
