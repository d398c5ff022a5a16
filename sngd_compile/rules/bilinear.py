"""`F.bilinear`: a row is the Kronecker product of a pair of inputs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

import sngd_kernels
from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.registry import register_rule


@register_rule
class Bilinear(Rule):
    """`y_o = x1^T W_o x2 + b_o`, which is linear in `x1 (x) x2`: rows `[N, I1 * I2]`.

    Source: docs/method.md, local Fishers: the rows of what the weight multiplies.
    """

    name = "bilinear"
    targets = (torch.bilinear,)
    signature = inspect.signature(lambda input1, input2, weight, bias=None: ...)

    def match(self, call: Call) -> Use | str:
        """Take the weight `[O, I1, I2]`; a bias of its own joins the local Fisher."""
        weight = call.parameter("weight")
        if weight is None:
            return "F.bilinear uses it, but not as its weight"
        bias = call.arguments["bias"] if call.parameter("bias") is not None else None
        inputs = (call.arguments["input1"], call.arguments["input2"])
        return Use(call.arguments["weight"], inputs, Layout.plain(weight.shape), bias)

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return the products of all pairs of numbers, `[N, I1 * I2]`."""
        first, second = inputs
        return (first[:, :, None] * second[:, None, :]).flatten(1)

    def diagonal(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add the rows' squares to `out`, without making the rows."""
        first, second = samples
        # The square of a product is the product of squares: all sums are one product of matrices.
        squares = sngd_kernels.matmul_nt(first.square().T, second.square().T).flatten()
        out[: squares.numel()].add_(squares)
        if bias:
            out[-1].add_(first.shape[0])
        return out
