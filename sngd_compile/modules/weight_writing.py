"""The weight, the bias and their gradients as the rest of the world knows them: to read, to write.

Maps are computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sngd_compile.errors import ModelError
from sngd_compile.fisher.roots.base import Pair
from sngd_compile.fisher.weight_map import visibly_mapped
from sngd_compile.training.coordinates import Held, Parameters, move_
from sngd_compile.training.refresh import LocalSite, present_root

Map = Callable[[Tensor, Tensor | None], Pair]


@torch.no_grad()
def write_(site: LocalSite, index: int, value: Tensor) -> None:
    """Make `value` the folded weight (index 0) or bias (1); the other half stays.

    Raises:
        ModelError: It has another shape.
    """
    parameter = (site.weight, site.bias)[index]
    if parameter is None or value.shape != parameter.shape:
        shape = None if parameter is None else tuple(parameter.shape)
        raise ModelError(
            f"{site.fisher.name}: what is reconstructed as {shape} is given the shape "
            f"{tuple(value.shape)}, for which its local Fisher says nothing; call sngd.fold first, "
            "resize the folded network, and reconstruct that"
        )
    root = present_root(site.fisher, torch.float64)
    change = _with_half(site, index, value, root.fold, root.unfold)
    Parameters.of(site.fisher, site.weight, site.bias).move_(site, change, torch.float64)
    # Else the next refresh would report it as a copy into which somebody averages weights.
    site.fisher.note_change_()


@torch.no_grad()
def gradient(site: LocalSite, index: int) -> Tensor | None:
    """Return the gradient of the folded weight (index 0) or bias (1); None where none is."""
    weight, bias = _gradients(site)
    if weight is None and bias is None:
        return None
    return of_folded(site, index, *_filled(site, weight, bias))


def of_folded(site: LocalSite, index: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the gradient of the folded weight or bias from those of `w'` and `b'`."""
    root = present_root(site.fisher, torch.float64)
    found = visibly_mapped("from_prime", root, site.fisher.layout, weight, bias)[index]
    assert found is not None
    return found


@torch.no_grad()
def write_gradient_(site: LocalSite, index: int, value: Tensor) -> None:
    """Make `value` the gradient of the folded weight (index 0) or bias (1); the other stays."""
    root = present_root(site.fisher, torch.float64)
    change = _with_half(site, index, value, root.from_prime, root.to_prime)
    weight, bias = _filled(site, *_gradients(site))
    move_(site, change, torch.float64, Held.of(weight, bias))
    site.weight.grad = weight
    if site.bias is not None:
        site.bias.grad = bias


def _with_half(site: LocalSite, index: int, value: Tensor, there: Map, back: Map) -> Map:
    """Return the map that goes there, puts a half in place, and comes back."""
    layout = site.fisher.layout
    given = (layout.vectors(value) if index else layout.matrices(value)).to(torch.float64)

    def change(weight: Tensor, bias: Tensor | None) -> Pair:
        halves = list(there(weight, bias))
        halves[index] = given
        return back(halves[0], halves[1])  # type: ignore[arg-type]

    return change


def _gradients(site: LocalSite) -> tuple[Tensor | None, Tensor | None]:
    return site.weight.grad, None if site.bias is None else site.bias.grad


def _filled(
    site: LocalSite, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return gradients with zeros for what has none."""
    if bias is None and site.bias is not None:
        bias = torch.zeros_like(site.bias)
    return torch.zeros_like(site.weight) if weight is None else weight, bias
