"""`F.grouped_mm`: every group of rows meets a matrix of its own, as in a mixture of experts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import sngd_kernels
from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.registry import register_rule
from sngd_compile.torch_private import grouped_mm


@register_rule
class GroupedProduct(Rule):
    """`y_n = x_n W_g` for the group g of row n, W `[G, K, O]`; `offsets` are where groups end.

    All groups share one count of rows, so a group that few rows reach has a small Fisher, as a rare
    token has in an embedding.

    Source: docs/method.md, local Fishers; tests/rules/test_grouped_product.py.
    """

    name = "grouped product"
    # The public function calls the private one.
    # The operator is what transformers compiles instead, where the function takes bfloat16 alone.
    targets = (F.grouped_mm, grouped_mm, "transformers::grouped_mm_fallback")
    signature = inspect.signature(lambda rows, weight, offs=None, bias=None, out_dtype=None: ...)

    def match(self, call: Call) -> Use | str:
        """Take the stack of matrices, multiplied from the left by rows sorted by group."""
        weight = call.parameter("weight")
        if weight is None or weight.dim() != 3 or call.arguments["offs"] is None:
            return "a grouped product uses it, but not as its matrices [G, K, O]"
        groups, width, outputs = weight.shape
        layout = Layout((groups, width, outputs), (0, 2, 1), (groups, outputs, width))
        inputs = (call.arguments["rows"], call.arguments["offs"])
        return Use(call.arguments["weight"], inputs, layout, None, (groups,))

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return the rows `[N, K]` and the group of each."""
        rows, ends = inputs
        numbers = torch.arange(len(rows), device=rows.device, dtype=ends.dtype)
        # Right: a row whose number is the end of a group is the first of the next. Rows behind the
        # last end get a number that no group has.
        return [rows, torch.bucketize(numbers, ends, right=True)]

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return `[G, N, K]`: of every group the rows, those of others being zero."""
        rows, group_of = inputs
        members = torch.arange(geometry[0], device=rows.device)[:, None] == group_of
        return rows * members[..., None]

    def second_moment(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add every group's second moment to its own part of `out`; matrices have no bias."""
        rows, group_of = samples
        for group, moment in enumerate(out):
            sngd_kernels.second_moment(rows[group_of == group], bias=bias, out=moment)
        return out

    def sketch(
        self,
        samples: Sequence[Tensor],
        geometry: Sequence[int],
        bias: bool,
        omega: Tensor,
        out: Tensor,
    ) -> Tensor:
        """Add the sketch of every group's rows to its own part of `out`."""
        rows, group_of = samples
        for group, moment in enumerate(out):
            sngd_kernels.sketch(rows[group_of == group], omega, bias=bias, out=moment)
        return out
