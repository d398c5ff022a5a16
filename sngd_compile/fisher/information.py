"""Per-unit Fisher information: how much the output of a unit tells of its pre-activation.

Legend: a pre-activation, f activation, y the unit's random output.

`nu(a) = E_y[(d log p(y | a) / da)^2]`. A sigmoid or tanh unit draws y from its two values with
probability sigmoid(a), or (1 + tanh(a)) / 2: `nu = s (1 - s)`, `1 - tanh(a)^2`. Any other draws y
from a Gaussian of unit variance around f(a), so `nu = f'(a)^2`. A ReLU is taken for softplus, whose
derivative is the sigmoid: a unit that is off would say nothing else.

Source: Sun and Nielsen 2017, arXiv 1606.06069; docs/method.md. tests/fisher/test_unit.py tests it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt

import torch
from torch import Tensor


def _tanh(a: Tensor) -> Tensor:
    return 1 - a.tanh().square()


def _sigmoid(a: Tensor) -> Tensor:
    return a.sigmoid() * (-a).sigmoid()


def _relu(a: Tensor) -> Tensor:
    return a.sigmoid().square()


def _elu(a: Tensor) -> Tensor:
    return (2 * a.clamp(max=0)).exp()


def _gelu(a: Tensor) -> Tensor:
    density = (-a.square() / 2).exp() / sqrt(2 * pi)
    slope: Tensor = torch.special.ndtr(a) + a * density
    return slope.square()


def _silu(a: Tensor) -> Tensor:
    on = a.sigmoid()
    return (on * (1 + a * (-a).sigmoid())).square()


INFORMATION: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": _relu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "elu": _elu,
    "gelu": _gelu,
    "silu": _silu,
}
"""nu by the name of the activation; of a linear unit it is 1."""
