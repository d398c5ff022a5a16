"""Matching a module that is reconstructed already, after a copy, a load or a changed attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx, nn

from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.plan.matching import bias_target, find
from sngd_compile.plan.records import Place


def match_again(
    module: nn.Module,
    module_class: type[nn.Module],
    names: Mapping[str, str | None],
    layers: Mapping[str, FisherLayer],
) -> tuple[fx.Graph | None, Sequence[Place], frozenset[str]]:
    """Find the places of the weights in a module's forward, if they are used as they were.

    Args:
        module: The module, its parameters being `w'`.
        module_class: Its original class.
        names: Attribute name of each reconstructed weight, with that of its bias.
        layers: The Fisher layer of each.

    Returns:
        The captured graph and the places, no graph where the module's own forward must run; and the
        attributes of the module on which that depends.
    """
    findings = find(module, module_class, names)
    nothing = None, (), findings.names_read
    places = []
    for name, bias in names.items():
        found = findings.found[name]
        if findings.graph is None or not isinstance(found, tuple):
            return nothing
        uses = tuple(call.against(layers[name].layout) for call in found)
        # The Fisher layer has rows of this width, with a 1 for the bias that joined: a call of
        # another shape, or with another bias, would need another layer.
        fits = all(
            call.use.layout.swapped_width(layers[name].layout) is not None
            and (bias_target(call.use) == bias or bias is None)
            for call in uses
        )
        if not fits:
            return nothing
        places.append(Place("", name, bias, uses, layers[name].spec))
    return findings.graph, places, findings.names_read
