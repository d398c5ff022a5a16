"""`F.embedding_bag`: every bag is one row, how much of each entry it holds."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_kernels
from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.channelwise import widened
from sngd_compile.rules.embedding import NO_PADDING
from sngd_compile.rules.registry import register_rule
from sngd_compile.rules.structure import Planned, register_structure

_REFUSED = {
    "max_norm": "the forward renormalises entries in place",
    "scale_grad_by_freq": "the gradient is divided by frequencies, which SNGD does itself",
    "sparse": "its gradient is sparse, which no root can act on; set sparse=False",
}


@register_rule
class EmbeddingBag(Rule):
    """`y = W^T r_b` for a table W `[V, E]`: of `E[r_b r_b^T]` the diagonal, by entries.

    `r_b` sums the entries of a bag, weighted, or takes their mean. Unlike that of an embedding, the
    second moment is no diagonal; it is large, so its diagonal is all that is kept. The geometry:
    entries, padding index, whether the mean is taken, whether offsets and weights are given, and
    whether the last offset is the end.

    Source: docs/method.md, local Fishers: the diagonal for embeddings.
    """

    name = "embedding_bag"
    targets = (F.embedding_bag,)
    signature = inspect.signature(F.embedding_bag)
    kind = "diagonal"
    least_samples = sys.maxsize  # bags are ragged, and cheap to sum: all of them are taken

    def match(self, call: Call) -> Use | str:
        """Take the table, unless its gradient or its entries are changed on the way."""
        arguments, weight = call.arguments, call.parameter("weight")
        if weight is None:
            return "F.embedding_bag uses it, but not as its weight"
        reason = _refusal(arguments)
        if reason is not None:
            return reason
        entries, padding = weight.shape[0], arguments["padding_idx"]
        given = [arguments[name] for name in ("offsets", "per_sample_weights")]
        geometry = (
            entries,
            NO_PADDING if padding is None else padding % entries,
            int(arguments["mode"] == "mean"),
            *(int(value is not None) for value in given),
            int(arguments["include_last_offset"]),
        )
        inputs = (arguments["input"], *(value for value in given if value is not None))
        layout = Layout.transposed(weight.shape)
        return Use(arguments["weight"], inputs, layout, None, geometry)

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return the size of every bag `[B]`; entry and weight of all that is in them `[M]`."""
        _, padding, is_mean, has_offsets, has_weights, has_end = geometry
        indices = inputs[0].flatten()
        if has_offsets:
            end = indices.new_full((1 - has_end,), len(indices))
            sizes = torch.cat([inputs[1].to(indices.dtype), end]).diff()
        else:
            sizes = indices.new_full(inputs[0].shape[:1], inputs[0].shape[1])
        counted = indices != padding
        weights = widened(inputs[-1]).flatten() * counted if has_weights else counted.double()
        if is_mean:
            bags = _bags(sizes)
            counts = weights.new_zeros(len(sizes)).index_add(0, bags, weights)
            # A bag of padding alone has a row of zeros, not of 0 / 0.
            weights = weights / counts.clamp(min=1)[bags]
        return [sizes, indices, weights]

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return `r_b` for every bag, `[B, V]`."""
        sizes, indices, weights = inputs
        rows = weights.new_zeros(len(sizes), geometry[0])
        return rows.index_put((_bags(sizes), indices), weights, accumulate=True)

    def diagonal(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add the rows' squares to `out`, `[V]`; an entry twice in a bag counts fourfold."""
        sizes, indices, weights = samples
        return sngd_kernels.bag_squared_sum(_bags(sizes), indices, weights, geometry[0], out=out)


@register_structure(nn.EmbeddingBag)
def embedding_bag_weights(module: nn.Module) -> Mapping[str, Planned | str]:
    """Describe the table of a layer whose forward takes optional arguments."""
    names = (*_REFUSED, "mode", "padding_idx", "include_last_offset")
    reason = _refusal({name: getattr(module, name) for name in names})
    weight = module._parameters["weight"]
    assert weight is not None
    planned = Planned(EmbeddingBag.name, Layout.transposed(weight.shape), None, "diagonal")
    return {"weight": planned if reason is None else reason}


def _refusal(arguments: Mapping[str, Any]) -> str | None:
    """Say why a table is left, by the arguments of its call."""
    for name, change in _REFUSED.items():
        if arguments[name] not in (None, False):
            return f"F.embedding_bag with {name}={arguments[name]}: {change}"
    mode = arguments["mode"]
    if mode == "max":
        return "F.embedding_bag with mode=max: which entries count depends on the table itself"
    static = (("mode", str), ("padding_idx", int | None), ("include_last_offset", bool))
    for name, kind in static:
        if not isinstance(arguments[name], kind):
            return f"F.embedding_bag with a {name} computed in the forward"
    return None


def _bags(sizes: Tensor) -> Tensor:
    """Return the bag of each index, `[M]`."""
    return torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
