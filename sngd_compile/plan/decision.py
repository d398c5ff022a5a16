"""From what every module does with a parameter to one decision for the parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx

from sngd_compile.config import TWO_SIDED, Config
from sngd_compile.layout import Layout
from sngd_compile.plan.fisher_kind import blocks_of, by_unit
from sngd_compile.plan.logits import of_logits
from sngd_compile.plan.matching import UNUSED, Found
from sngd_compile.plan.parameter_uses import Decision, Holding, hidden_outputs
from sngd_compile.plan.records import GraphUse
from sngd_compile.plan.root_choice import with_root
from sngd_compile.rules import GUESS, RULES, Planned


def decide(
    holdings: Mapping[Tensor, Sequence[Holding]], configs: Mapping[Tensor, Config | None]
) -> tuple[dict[Tensor, Decision], dict[Tensor, str]]:
    """Decide for every parameter; a bias joins the weight whose calls alone add it.

    Returns:
        The decisions by weight, and the reasons of those that are left, biases that join included.
    """
    decisions: dict[Tensor, Decision] = {}
    reasons: dict[Tensor, str] = {}
    free = {p for p in holdings if configs[p] is not None}
    for parameter, held in holdings.items():
        found = _decide_weight(parameter, held, configs[parameter])
        if isinstance(found, str):
            reasons[parameter] = found
            continue
        bias = _common_bias(found[0], held)
        if bias not in free or not _joins(bias, found[0], held, holdings):
            bias = None
        free.discard(bias)
        decision = _decision(parameter, bias, held, *found)
        if decision.kind in TWO_SIDED:
            decision = _two_sided(decision, held)
        elif decision.kind == "unit":
            decision = by_unit(decision, held)
        elif decision.kind == "softmax":
            decision = of_logits(decision, held)
        decisions[parameter] = with_root(decision, parameter.device)
    return decisions, reasons


Candidate = tuple[Layout, str, str]
"""Layout, kind by nature and rule of one call."""


def _decide_weight(
    parameter: Tensor, held: Sequence[Holding], config: Config | None
) -> tuple[Layout, str, str, Config] | str:
    usable = [h.found for h in held if not isinstance(h.found, str)]
    refused = [h.found for h in held if isinstance(h.found, str)]
    refused = [text for text in refused if text != UNUSED] or ([] if usable else refused)
    if refused:
        return refused[0]
    if config is None:
        return "left out by an override"
    candidates = list(_candidates(usable))
    sure = [c for c in candidates if c[2] != GUESS] or candidates
    full = [c for c in sure if c[1] != "diagonal"]
    layout, _, rule = (full or sure)[0]
    if any(c[0].swapped_width(layout) is None for c in sure):
        kinds = sorted({c[2] for c in sure})
        return f"its uses read it in ways that do not fit together ({', '.join(kinds)})"
    return layout, "diagonal" if not full else config.fisher, rule, config


def _candidates(usable: Iterable[Found]) -> Iterable[Candidate]:
    for found in usable:
        if isinstance(found, Planned):
            yield found.layout, found.kind, found.rule
        elif isinstance(found, tuple):
            for use in found:
                yield use.use.layout, RULES[use.rule].kind, use.rule


def _decision(
    weight: Tensor,
    bias: Tensor | None,
    held: Sequence[Holding],
    layout: Layout,
    kind: str,
    rule: str,
    config: Config,
) -> Decision:
    """Take a diagonal where the full factor, or the one in blocks, is too large."""
    dtype, shape, note = weight.dtype, tuple(weight.shape), ""
    size = layout.width + (bias is not None)
    blocks: tuple[int, ...] = ()
    if kind == "block":
        blocks, note = blocks_of(shape, layout, rule, bias is not None, config, held)
        kind = "block" if blocks else "shared"
    entries = sum(block**2 for block in blocks or (size,))
    bytes_of_factor = (layout.groups or 1) * entries * max(4, dtype.itemsize)
    if kind != "diagonal" and bytes_of_factor > config.max_factor_bytes:
        full = "a full factor" if kind != "block" else "a factor in blocks"
        kind, blocks = "diagonal", ()
        note = (
            f"{full} of {bytes_of_factor:,} bytes is above max_factor_bytes = "
            f"{config.max_factor_bytes:,}: only its diagonal is kept"
        )
    return Decision(bias, shape, dtype, layout, rule, kind, config, note, blocks)


def _two_sided(decision: Decision, held: Sequence[Holding]) -> Decision:
    """Take one side where the output side cannot be had, and say why."""
    reason = _without_outputs(decision, held)
    return decision.kept_shared(reason) if reason else decision


def _without_outputs(decision: Decision, held: Sequence[Holding]) -> str:
    """Say why the gradients at the outputs of a weight's calls cannot be observed, or ""."""
    layout, limit = decision.layout, decision.config.max_factor_bytes
    bytes_of_factor = (layout.groups or 1) * layout.outputs**2 * 8
    if bytes_of_factor > limit:
        return f"a factor of its outputs, {bytes_of_factor:,} bytes, is above max_factor_bytes"
    if decision.dtype == torch.float16:
        return "w' would be as small as the gradients, which float16 cannot hold; use bfloat16"
    return hidden_outputs(held, layout)


def _common_bias(layout: Layout, held: Sequence[Holding]) -> Tensor | None:
    """Return the one parameter that every call adds as its bias, if there is one."""
    biases: list[Tensor | None] = []
    for holding in held:
        if isinstance(holding.found, Planned):
            biases.append(holding.parameters.get(holding.found.bias or ""))
        elif isinstance(holding.found, tuple):
            tensors = holding.findings.tensors
            biases += [_bias_of(use, layout, tensors) for use in holding.found]
    first = biases[0]
    return first if all(bias is first for bias in biases) else None


def _bias_of(use: GraphUse, layout: Layout, tensors: Mapping[fx.Node, Tensor]) -> Tensor | None:
    is_direct = use.use.layout.swapped_width(layout) == 0
    bias = use.use.bias
    return tensors.get(bias) if is_direct and isinstance(bias, fx.Node) else None


def _joins(
    bias: Tensor | None,
    layout: Layout,
    held: Sequence[Holding],
    holdings: Mapping[Tensor, Sequence[Holding]],
) -> bool:
    """Say whether the calls of a weight, and no others, add this bias, one number per output."""
    if bias is None or bias.numel() != layout.all_outputs:
        return False
    owners = {h.owner: h for h in held if not isinstance(h.found, str)}
    for holding in holdings[bias]:
        weight = owners.get(holding.owner)
        if weight is None:
            return False
        if isinstance(weight.found, tuple):
            calls = {use.node for use in weight.found}
            if not calls.issuperset(holding.findings.calls[holding.name]):
                return False
    return True
