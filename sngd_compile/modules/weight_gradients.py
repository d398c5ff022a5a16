"""`torch.autograd.grad` by the folded weight or bias of a layer: by way of `w'` and `b'`.

The tensor that an attribute gives is no part of the graph of a loss; `w'` is, however often and
wherever it was folded, and `dL/dw = (dL/dw') R^-T`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sngd_compile.errors import ModelError
from sngd_compile.modules.weight_writing import gradient, of_folded, write_gradient_
from sngd_compile.torch_private import DisableTorchFunctionSubclass
from sngd_compile.training.refresh import LocalSite

Wanted = tuple[LocalSite, int]
"""A site, and which half of its pair: 0 the weight, 1 the bias."""


def gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Any],
    *,
    wanted: Callable[[Any], Wanted | None],
    allow_unused: bool | None = None,
    materialize_grads: bool = False,
    **options: Any,
) -> tuple[Tensor | None, ...]:
    """Do what `torch.autograd.grad` does.

    Args:
        outputs: As there.
        inputs: As there.
        wanted: Says of an input whose weight or bias it is, or None.
        allow_unused: As there.
        materialize_grads: As there.
        options: As there.

    Raises:
        ModelError: An input was not used, or half of a pair that shares coordinates is frozen.
    """
    targets = [wanted(each) for each in inputs]
    groups = [
        [given] if target is None else _halves(target)
        for given, target in zip(inputs, targets, strict=True)
    ]
    flat = [leaf for group in groups for leaf in group]
    with DisableTorchFunctionSubclass():
        # Of a pair one half may be unused, which the other tells of.
        found = iter(torch.autograd.grad(outputs, flat, allow_unused=True, **options))
        each = [[next(found) for _ in group] for group in groups]
        batched = bool(options.get("is_grads_batched"))
        with torch.set_grad_enabled(bool(options.get("create_graph"))):
            results = [
                group[0] if target is None else _mapped(target, group, batched)
                for target, group in zip(targets, each, strict=True)
            ]
        if materialize_grads:
            pairs = zip(results, inputs, strict=True)
            return tuple(torch.zeros_like(x) if g is None else g for g, x in pairs)
    unused = [index for index, result in enumerate(results) if result is None]
    if unused and not allow_unused:
        names = [_name(targets[index], index) for index in unused]
        raise ModelError(
            f"{', '.join(names)}: no output depends on it, so it has no gradient; "
            "allow_unused=True gives None. Of a layer it is the gradient of its .weight_prime"
        )
    return tuple(results)


def accumulate(
    tensors: Any,
    grad_tensors: Any = None,
    *,
    inputs: Sequence[Any],
    wanted: Callable[[Any], Wanted | None],
    **options: Any,
) -> None:
    """Do what `torch.autograd.backward` does for some inputs: add to their `.grad` alone."""
    given = {name: value for name, value in options.items() if value is not None}
    found = gradients(
        tensors, inputs, wanted=wanted, grad_outputs=grad_tensors, allow_unused=True, **given
    )
    for each, added in zip(inputs, found, strict=True):
        target = wanted(each)
        present = each.grad if target is None else gradient(*target)
        if added is None:
            continue
        total = added if present is None else present + added
        if target is None:
            each.grad = total
        else:
            write_gradient_(*target, total)


def _halves(target: Wanted) -> list[Tensor]:
    """Return the parameters on which the gradient of one half depends."""
    site, index = target
    weight, bias = site.weight, site.bias
    halves: list[Tensor] = [p for p in (weight, bias) if p is not None]
    if not site.is_bias_joined:
        halves = [halves[index]]
    if not all(half.requires_grad for half in halves):
        raise ModelError(
            f"{site.fisher.name}: its gradient is asked for while it or the bias that shares its "
            "local Fisher is frozen; thaw both, or take one step of the optimizer, which parts "
            "them, or ask for the gradient of .weight_prime"
        )
    return halves


def _mapped(target: Wanted, given: Sequence[Tensor | None], batched: bool) -> Tensor | None:
    """Return the gradient of a folded half; None where nothing depends on it."""
    site, index = target
    if all(gradient is None for gradient in given):
        return None
    if not site.is_bias_joined and index:
        return given[0]  # the root leaves it as it is

    def fill(gradient: Tensor | None, like: Tensor) -> Tensor:
        known = next(g for g in given if g is not None)
        lead = known.shape[:1] if batched else ()
        return like.new_zeros((*lead, *like.shape)) if gradient is None else gradient

    parameters = [p for p in (site.weight, site.bias) if p is not None]
    pair = [fill(g, p) for g, p in zip(given, parameters, strict=False)]

    def map_one(weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return of_folded(site, index, weight, bias)

    result: Tensor = torch.vmap(map_one)(*pair) if batched else map_one(*pair)
    return result


def _name(target: Wanted | None, index: int) -> str:
    return f"input {index}" if target is None else target[0].fisher.name
