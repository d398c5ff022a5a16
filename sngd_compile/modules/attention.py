"""`nn.MultiheadAttention`: the projections of query, key and value, and that of the result."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from math import lcm
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_kernels
from sngd_compile.layout import Layout
from sngd_compile.modules.folded_weight import FoldedWeight, show, show_use
from sngd_compile.rules import Call, Planned, Rule, Use, register_rule, register_structure
from sngd_compile.rules.interception import register_composite

_ONE_MORE = "one more key or value: its local Fisher is the identity, so plain descent is natural"
_THREE = "it is the bias of three weights of their own; its own local Fisher is the identity"
_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


@register_rule
class InProjection(Rule):
    """The packed projections `[3 E, E]`: groups whose rows are query, key and value.

    Where keys are more or fewer than queries, each group still has the mean over its own rows;
    the rows of the queries are counted.

    Source: docs/method.md, local Fishers.
    """

    name = "attention projections"
    targets: ClassVar[tuple[Any, ...]] = ()
    signature = inspect.signature(lambda: ...)

    def match(self, call: Call) -> Use | str:
        """Refuse: no single call is one; the attention function shows its inputs."""
        return "an attention projection is no call of its own"

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return `[N, E]` each where they are alike, else whole sequences `[N, L, E]`."""
        if all(tensor.shape == inputs[0].shape for tensor in inputs):
            return [tensor.reshape(-1, tensor.shape[-1]) for tensor in inputs]
        # The same samples are drawn from all three, so an index must mean the same in each: where
        # keys are more or fewer than queries, only the sequence does.
        return [tensor.transpose(0, 1) for tensor in inputs]

    def rows_per_sample(self, samples: Sequence[Tensor], geometry: Sequence[int]) -> int:
        """Return the number of queries in a sequence, or 1."""
        return samples[0].shape[1] if samples[0].dim() == 3 else 1

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return `[3, N, E]`, each group repeated so that all have the same number."""
        groups = [tensor.reshape(-1, tensor.shape[-1]) for tensor in inputs]
        count = lcm(*(len(group) for group in groups))
        return torch.stack([group.repeat(count // len(group), 1) for group in groups])

    def second_moment(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add the sum of the rows' outer products, `[3, D, D]`, as if all groups had N rows."""
        for rows, weight, moment in _weighted(samples, out):
            own = sngd_kernels.second_moment(rows, bias=bias, out=torch.zeros_like(moment))
            moment.add_(own, alpha=weight)
        return out

    def diagonal(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add the sum of the rows' squares, `[3, D]`, as if all groups had N rows."""
        for rows, weight, squares in _weighted(samples, out):
            squares.add_(sngd_kernels.squared_sum(rows, bias=bias), alpha=weight)
        return out


def _weighted(samples: Sequence[Tensor], out: Tensor) -> list[tuple[Tensor, float, Tensor]]:
    """List the rows of every group, what each counts, and where it is added."""
    groups = [tensor.reshape(-1, tensor.shape[-1]) for tensor in samples]
    counts = [len(groups[0]) / max(1, len(group)) for group in groups]
    return list(zip(groups, counts, out, strict=True))


@register_structure(nn.MultiheadAttention)
def weights_of(module: nn.Module) -> dict[str, Planned | str]:
    """Describe the projections: packed, or one each; `out_proj` is a layer of its own.

    Source: docs/method.md, local Fishers.
    """
    owned = {name: p for name, p in module._parameters.items() if p is not None}
    described: dict[str, Planned | str] = {"bias_k": _ONE_MORE, "bias_v": _ONE_MORE}
    if "in_proj_weight" in owned:
        layout = Layout.plain(owned["in_proj_weight"].shape, groups=3)
        bias = "in_proj_bias" if "in_proj_bias" in owned else None
        described["in_proj_weight"] = Planned(InProjection.name, layout, bias)
        return described
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        if name in owned:
            described[name] = Planned("linear", Layout.plain(owned[name].shape))
    return described | {"in_proj_bias": _THREE}


@register_composite(F.multi_head_attention_forward)
def attend(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Run the attention function and observe its projections.

    What reaches the last projection is seen by running the function with the identity in its
    place; the product with ones and zeros is exact.
    """
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    weight, bias = given["out_proj_weight"], given["out_proj_bias"]
    if isinstance(weight, FoldedWeight):
        given["out_proj_weight"] = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        given["out_proj_bias"] = None
    result, attention = F.multi_head_attention_forward(*bound.args, **bound.kwargs)
    if isinstance(weight, FoldedWeight):
        show(weight, result)
        result = F.linear(result, weight, bias)
    _show_inputs(given)
    return result, attention


def _show_inputs(given: dict[str, Any]) -> None:
    """Let the projections observe query, key and value, `[L, N, E]` or `[L, E]`."""
    inputs = [given[name] for name in ("query", "key", "value")]
    if inputs[0].dim() == 2:
        inputs = [tensor[:, None] for tensor in inputs]
    packed = given["in_proj_weight"]
    if isinstance(packed, FoldedWeight):
        layout = Layout.plain(packed.shape, groups=3)
        show_use(packed, tuple(inputs), layout, InProjection.name)
    for name, rows in zip("qkv", inputs, strict=True):
        own = given[f"{name}_proj_weight"]
        # A static key or value stands in for the projection, whose weight then multiplies nothing.
        if own is not None and given.get(f"static_{name}") is None:
            show(own, rows)
