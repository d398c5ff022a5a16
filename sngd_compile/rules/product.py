"""`x @ W`, `W @ x` and their spellings: the rows are the vectors of x that W multiplies."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.registry import register_rule

LEFT, RIGHT = 0, 1
TWO_PARAMETERS = "a product of two parameters: no activation enters it"


class _Product(Rule):
    """Rows of a product with one parameter, on either side, of any number of axes.

    The parameter is `[*, K, O]` on the right, `[*, O, K]` on the left, or `[K]`; each index of `*`
    is a group with a local Fisher of its own. A batch axis of the activations that the parameter
    lacks, or has with size 1, gives rows.
    """

    takes_halves = True

    def product(self, call: Call, left: str, right: str) -> Use | str:
        """Describe a product `left @ right`; an answer in words says which call it is about."""
        weights = call.parameter(left), call.parameter(right)
        if weights[LEFT] is not None and weights[RIGHT] is not None:
            return TWO_PARAMETERS
        side = LEFT if weights[LEFT] is not None else RIGHT
        weight = weights[side]
        if weight is None:
            return "a product uses it, but not as a factor"
        if weight.dim() == 0:
            return "a product with a scalar parameter"
        inputs = (call.arguments[right if side == LEFT else left],)
        batch = weight.shape[:-2]
        geometry = (side, int(weight.dim() == 1), *batch)
        is_linear = side == RIGHT and weight.dim() == 2
        name = left if side == LEFT else right
        layout = _layout(weight.shape, side)
        return Use(call.arguments[name], inputs, layout, None, geometry, is_linear)

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return the vectors `[N, K]`, or `[N, G, K]` of a parameter with batch axes."""
        side, _, *batch = geometry
        vectors = inputs[0]
        if vectors.dim() == 1:
            vectors = vectors[None]
        elif side == LEFT:
            vectors = vectors.mT
        if not batch:
            return [vectors.reshape(-1, vectors.shape[-1])]
        missing = max(0, len(batch) - (vectors.dim() - 2))
        vectors = vectors[(None,) * missing]
        own = [1] * (vectors.dim() - 2 - len(batch)) + batch
        sizes = [max(size, n) for size, n in zip(own, vectors.shape[:-2], strict=True)]
        vectors = vectors.expand(*sizes, *vectors.shape[-2:])
        shared = [axis for axis, size in enumerate(own) if size == 1]
        grouped = [axis for axis, size in enumerate(own) if size > 1]
        rows, width = len(own), len(own) + 1
        ordered = vectors.permute(*shared, rows, *grouped, width)
        return [ordered.reshape(-1, prod(batch), vectors.shape[-1])]

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return `[N, K]`, or `[G, N, K]`."""
        return inputs[0] if len(geometry) == 2 else inputs[0].transpose(0, 1)


@register_rule
class Product(_Product):
    """`torch.matmul`, `@`, `torch.mm` and `torch.bmm` with one parameter.

    Source: docs/method.md, local Fishers; the product is `F.linear` on a transpose.
    """

    name = "product"
    targets: ClassVar[tuple[Any, ...]] = (
        *(torch.matmul, torch.mm, torch.bmm, operator.matmul),
        *(Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__),
    )
    # matmul names its second argument `other`, mm and bmm name it `mat2`.
    signature = inspect.signature(lambda input, other=None, *, mat2=None, out=None: ...)

    def match(self, call: Call) -> Use | str:
        """Take the parameter, whichever side it is on."""
        if call.arguments["out"] is not None:
            return "a product that is written into another tensor"
        return self.product(call, "input", "other" if call.arguments["mat2"] is None else "mat2")


@register_rule
class ReflectedProduct(_Product):
    """`Tensor.__rmatmul__(right, left)`, which is `left @ right`.

    Source: docs/method.md, local Fishers.
    """

    name = "reflected product"
    targets = (Tensor.__rmatmul__,)
    signature = inspect.signature(lambda right, left: ...)

    def match(self, call: Call) -> Use | str:
        """Take the parameter, whichever side it is on."""
        return self.product(call, "left", "right")


@register_rule
class ProductWithBias(_Product):
    """`torch.addmm(b, x, W)` as transformers' Conv1D calls it, or `torch.addmm(b, W, x)`.

    Source: docs/method.md, local Fishers.
    """

    name = "product with bias"
    targets: ClassVar[tuple[Any, ...]] = (torch.addmm, Tensor.addmm)
    signature = inspect.signature(lambda input, mat1, mat2, *, beta=1, alpha=1, out=None: ...)

    def match(self, call: Call) -> Use | str:
        """Take the factor that is a parameter; one number per output joins it as its bias."""
        scales = call.arguments["beta"], call.arguments["alpha"]
        if scales != (1, 1) or call.arguments["out"] is not None:
            return "torch.addmm with beta, alpha or out"
        use = self.product(call, "mat1", "mat2")
        bias = call.parameter("input")
        if isinstance(use, str):
            return use
        # The outputs of W @ x lie along the rows of the result, so a bias of theirs is a column.
        per_output = (use.layout.outputs, 1) if use.geometry[0] == LEFT else (use.layout.outputs,)
        if bias is not None and tuple(bias.shape) == per_output:
            return replace(use, bias=call.arguments["input"])
        return replace(use, is_linear=False)  # what is added is no bias of this weight


def _layout(shape: Sequence[int], side: int) -> Layout:
    """Lay the parameter out: a vector is one output, a stack one group for each index."""
    if len(shape) == 1:
        return Layout(tuple(shape), (0,), (1, shape[0]))
    if len(shape) == 2:
        return Layout.plain(shape) if side == LEFT else Layout.transposed(shape)
    return Layout.stacked(shape) if side == LEFT else Layout.stacked_transposed(shape)
