"""The guard of a step: gradients that are not finite never reach a weight."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from sngd_compile.errors import SngdWarning
from sngd_compile.torch_private import flattened, stored_values
from sngd_compile.training.sharding import whole
from sngd_compile.training.site import Site

SMALL_GRADIENT = 2**14
"""Elements up to which a gradient is looked at together with others."""


def drop_non_finite(
    optimizer: Optimizer, sites: Sequence[Site], finite: Sequence[Tensor] = ()
) -> bool:
    """Take all gradients away if one is not finite, as GradScaler skips such a step.

    Args:
        optimizer: Whose gradients are looked at, those of parameters without a site too.
        sites: The reconstructed weights among its parameters.
        finite: Gradients of which that is known.

    Returns:
        Whether all are finite.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    known = {id(gradient) for gradient in finite}
    given = [p.grad for p in parameters if p.grad is not None and id(p.grad) not in known]
    gradients = [stored_values(g) if g.is_sparse or g.is_complex() else g for g in given]
    if not gradients or _all_finite(gradients):
        return True
    names = [
        site.fisher.name
        for site in sites
        if site.weight.grad is not None and not _all_finite([site.weight.grad])
    ]
    first_time = not any("gradient" in site.fisher.warned for site in sites)
    for site in sites:
        site.fisher.warned.add("gradient")
    for parameter in parameters:
        parameter.grad = None
    if first_time:
        warnings.warn(
            f"{names[0] if names else 'a parameter that is not reconstructed'}: its gradient is "
            f"not finite ({len(names)} reconstructed weights are hit); the step is skipped and the "
            "weights stay as they are. Lower the learning rate, clip, or look at the loss.",
            SngdWarning,
            stacklevel=2,
        )
    return False


def _all_finite(gradients: list[Tensor]) -> bool:
    """Test one number that NaN and infinity survive; where it overflows, every element."""
    if isfinite(float(_one_number(gradients))):
        return True
    return all(bool(whole(g.isfinite().all())) for g in gradients)


def _one_number(gradients: list[Tensor]) -> Tensor:
    """Return what is not finite if one element is not, in few launches on a GPU."""
    device = gradients[0].device
    small: list[Tensor] = []
    others: list[Tensor] = []
    for gradient in gradients:
        # What is cut into parts has a type of its own.
        is_small = type(gradient) is Tensor and gradient.numel() <= SMALL_GRADIENT
        (small if is_small and gradient.device == device else others).append(gradient)
    if device.type == "cuda" and all(type(gradient) is Tensor for gradient in others):
        return get_total_norm(gradients)
    if small:  # a copy of them, one after another, takes less time than a call for each
        others.append(flattened(small))
    sums = [whole(gradient.sum()).float().to(device) for gradient in others]
    return torch.stack(sums).sum()
