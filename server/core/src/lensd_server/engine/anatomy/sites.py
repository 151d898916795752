"""Which unit a layer must offer for a site to be captured there."""

from collections.abc import Collection

from lensd_api import Anatomy, RequirementNotMet, Site, Unit

#: Sites that are not listed need nothing; those without a layer axis are in ``UNLAYERED``.
NEEDS: dict[Site, Unit] = {
    Site.ATTN_WRITE: Unit.COMPONENT,
    Site.MLP_WRITE: Unit.COMPONENT,
    Site.HEADS: Unit.HEAD,
    Site.NEURONS: Unit.NEURON,
    Site.EXPERT_WRITES: Unit.EXPERT,
    Site.EXPERT_IDS: Unit.EXPERT,
    Site.ATTENTION: Unit.SOURCE,
    Site.VALUES: Unit.SOURCE,
}
UNLAYERED = frozenset({Site.EMBED, Site.POS_EMBED, Site.FINAL_RESIDUAL, Site.RAW_LOGITS, Site.LOGITS})


def check_sites(anatomy: Anatomy, sites: Collection[Site], layers: Collection[int]) -> None:
    """Raises RequirementNotMet when ``sites`` cannot be captured at all of ``layers``."""
    missing = sorted(layer for layer in layers if not 0 <= layer < anatomy.n_layers)
    if missing:
        raise RequirementNotMet(f"there is no layer {missing[0]}: the model has {anatomy.n_layers} layers")
    for site in sorted(sites):
        unit = NEEDS.get(site)
        lacking = [i for i in layers if unit is not None and unit not in anatomy.layers[i].units]
        if unit is None or not lacking:
            continue
        reason = anatomy.layers[lacking[0]].refused.get(unit, "not offered")
        offered = ", ".join(sorted(anatomy.units)) or "none"
        raise RequirementNotMet(
            f"site '{site}' needs unit '{unit}', which layer {lacking[0]} does not offer: {reason}; "
            f"units offered by every layer: {offered}",
            metadata={"site": str(site), "unit": str(unit), "layer": str(lacking[0])},
        )
