"""From what every module does with a parameter to one decision for the parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from sngd_compile.config import NYSTROM, Config
from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.kinds.diagonal import Diagonal
from sngd_compile.fisher.kinds.shared import Shared
from sngd_compile.fisher.kinds.sketch import Sketch
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.layout import Layout
from sngd_compile.plan.matching import Found
from sngd_compile.plan.parameter_uses import Occurrence, WeightUses
from sngd_compile.plan.reasons import LEFT_OUT, PLAIN, UNUSED
from sngd_compile.plan.records import GraphUse, Site, noted_together
from sngd_compile.rules import RULES, Planned


@dataclass(frozen=True)
class Decision:
    """What becomes of a weight: its site, which does not know its places yet, and its bias."""

    site: Site
    bias: Tensor | None


def decide(
    occurrences: Mapping[Tensor, Sequence[Occurrence]], configs: Mapping[Tensor, Config | None]
) -> tuple[dict[Tensor, Decision], dict[Tensor, str]]:
    """Decide for every parameter; a bias joins the weight whose calls alone add it.

    Returns:
        The decisions by weight, and the reasons of those that are left, biases that join included.
    """
    decisions: dict[Tensor, Decision] = {}
    reasons: dict[Tensor, str] = {}
    # An override of None for a bias keeps it out, though its weight be reconstructed.
    free = {p for p in occurrences if configs[p] is not None}
    for parameter, held in occurrences.items():
        found = _decide_weight(parameter, held, configs[parameter])
        if isinstance(found, str):
            reasons[parameter] = found
            continue
        kind, uses = found
        bias = _common_bias(uses.layout, held)
        if bias not in free or not _joins(bias, uses.layout, held, occurrences):
            bias = None
        # One row of 1s cannot stand in two local Fishers: the first weight takes the bias.
        free.discard(bias)
        decisions[parameter] = Decision(_site(kind, bias is not None, uses), bias)
    return decisions, reasons


Candidate = tuple[Layout, str, str]
"""Layout, kind by nature and rule of one call."""


def _decide_weight(
    parameter: Tensor, held: Sequence[Occurrence], config: Config | None
) -> tuple[str, WeightUses] | str:
    """Return the kind that is wanted for a weight and its uses, or why it is left."""
    # One module that refuses a weight refuses it for all that share it: its gradient there would be
    # plain, and a sum of plain and natural gradients is neither. Not to use it is no refusal.
    usable = [h.found for h in held if not isinstance(h.found, str)]
    refused = [h.found for h in held if isinstance(h.found, str)]
    refused = [text for text in refused if not text.startswith(UNUSED)] or (
        [] if usable else refused
    )
    if refused:
        return refused[0]
    if config is None:
        return LEFT_OUT
    # A full factor counts more than a diagonal one: a table that is also a head has the head's.
    candidates = list(_candidates(usable))
    full = [c for c in candidates if c[1] != Diagonal.name]
    layout, _, rule = (full or candidates)[0]
    if any(c[0].swapped_width(layout) is None for c in candidates):
        kinds = sorted({c[2] for c in candidates})
        return f"its uses need different local Fishers ({', '.join(kinds)}); {PLAIN}"
    kind = config.fisher if full else Diagonal.name
    return kind, WeightUses(parameter, layout, rule, config, held)


def _candidates(usable: Iterable[Found]) -> Iterable[Candidate]:
    for found in usable:
        if isinstance(found, Planned):
            yield found.layout, found.kind, found.rule
        elif isinstance(found, tuple):
            for use in found:
                yield use.use.layout, RULES[use.rule].kind, use.rule


def _site(kind: str, has_bias: bool, uses: WeightUses) -> Site:
    """Take the kind that is wanted, another where that is unavailable."""
    config, dtype = uses.config, uses.weight.dtype
    spec = FisherSpec.of(uses.layout, has_bias, kind, config, dtype)
    choice = kind_of(spec).choose(spec, uses)
    if isinstance(choice, str):
        shared = FisherSpec.of(uses.layout, has_bias, Shared.name, config, dtype)
        wanted = kind_of(shared).choose(shared, uses)
        spec = shared if isinstance(wanted, str) else wanted.spec
        note = f'fisher = "{kind}" is unavailable here; using "{Shared.name}": {choice}'
    else:
        spec, note = choice.spec, choice.note
    if config.root == NYSTROM and not (spec.kind == Sketch.name or spec.is_diagonal):
        theirs = f'root = "{NYSTROM}" is that of a sketch; "{spec.kind}" has "{spec.root}"'
        note = noted_together(note, theirs)
    return Site((), tuple(uses.weight.shape), spec, uses.rule, config, note)


def _common_bias(layout: Layout, held: Sequence[Occurrence]) -> Tensor | None:
    """Return the one parameter that every call adds as its bias, if there is one."""
    biases: list[Tensor | None] = []
    for occurrence in held:
        if isinstance(occurrence.found, Planned):
            biases.append(occurrence.parameters.get(occurrence.found.bias or ""))
        elif isinstance(occurrence.found, tuple):
            tensors = occurrence.findings.tensors
            biases += [_bias_of(use, layout, tensors) for use in occurrence.found]
    first = biases[0]
    return first if all(bias is first for bias in biases) else None


def _bias_of(use: GraphUse, layout: Layout, tensors: Mapping[fx.Node, Tensor]) -> Tensor | None:
    is_direct = use.use.layout.swapped_width(layout) == 0
    bias = use.use.bias
    return tensors.get(bias) if is_direct and isinstance(bias, fx.Node) else None


def _joins(
    bias: Tensor | None,
    layout: Layout,
    held: Sequence[Occurrence],
    occurrences: Mapping[Tensor, Sequence[Occurrence]],
) -> bool:
    """Say whether the calls of a weight, and no others, add this bias, one number per output."""
    # A bias that is broadcast has no number for each output, which a row's 1 would multiply.
    if bias is None or bias.numel() != layout.all_outputs:
        return False
    owners = {h.owner: h for h in held if not isinstance(h.found, str)}
    for occurrence in occurrences[bias]:
        weight = owners.get(occurrence.owner)
        if weight is None:
            return False
        if isinstance(weight.found, tuple):
            calls = {use.node for use in weight.found}
            if not calls.issuperset(occurrence.findings.calls[occurrence.name]):
                return False
    return True
