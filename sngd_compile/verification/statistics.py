"""Laws of the statistics: each weight is observed, its factor is that of the Jacobian."""

from __future__ import annotations

from collections import defaultdict

import torch

from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.verification.calls import SWAPPED, Calls, second_moment_products, seen_by
from sngd_compile.verification.function import NO_SITE
from sngd_compile.verification.report import Check, checked, unfit
from sngd_compile.verification.subject import Subject, copy_of, in_training, sites_by_name

OF_EACH = 2
"""Weights of each rule and kind that are compared with their Jacobian, the smallest."""

PROBES = 4
"""Vectors that a factor is multiplied by."""

LARGEST = 2**20
"""Elements of a weight that is compared."""


def every_weight_is_observed(subject: Subject) -> Check:
    """Whatever the plan counts has rows after one training pass."""
    if not subject.layers:
        return unfit("observed", NO_SITE)
    if subject.is_empty:
        return unfit("observed", "the batch is empty")
    sites = sites_by_name(subject.refreshed)
    frozen = [name for name, site in sites.items() if not site.weight.requires_grad]
    unseen = {name: s.fisher.unseen for name, s in sites.items() if name not in frozen}
    missing = {name: what for name, what in unseen.items() if what}
    remark = f"{len(frozen)} weights are frozen" if frozen else ""
    if missing:
        names = [name for name, layer in subject.layers.items() if name in missing]
        listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        what = " or ".join(sorted(set(missing.values())))
        remark = f"no finite {what} of {listed} was seen"
    errors = {name: float(len(missing) if name in missing else 0) for name in sites}
    return checked("observed", errors, 0.0, remark)


def factor_is_the_jacobians_moment(subject: Subject) -> Check:
    """What was summed from the inputs is `J^T J / N` of the operations that the weight enters."""
    if not subject.layers:
        return unfit("factor", NO_SITE)
    chosen = _smallest_of_each(subject)
    seen = _calls(subject, chosen)
    layers = {name: site.fisher for name, site in sites_by_name(subject.refreshed).items()}
    errors: dict[str, float] = {}
    left: dict[str, list[str]] = defaultdict(list)
    for name in chosen:
        site = subject.sites.get(name)
        uses = [use for place in site.places for use in place.uses or ()] if site else []
        if any(use.swapped for use in uses):
            seen[name].unclear = SWAPPED
        found = _error(layers[name], seen[name])
        if isinstance(found, str):
            left[found].append(name)
        else:
            errors[name] = found
    parts = []
    if len(errors) < len(layers):
        parts = [f"compared for {len(errors)} of {len(layers)} weights, the smallest of each rule"]
    parts += [f"{', '.join(names)} left out: {reason}" for reason, names in left.items()]
    remark = "; ".join(parts)
    return checked("factor", errors, subject.bound, remark) if errors else unfit("factor", remark)


def _smallest_of_each(subject: Subject) -> list[str]:
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    weights = {name: site.weight for name, site in sites_by_name(subject.net).items()}
    for name in sorted(weights, key=lambda name: weights[name].numel()):
        if weights[name].numel() <= LARGEST:
            site = subject.sites.get(name)
            groups["" if site is None else site.rule, subject.layers[name].kind].append(name)
    return [name for names in groups.values() for name in names[:OF_EACH]]


def _calls(subject: Subject, chosen: list[str]) -> dict[str, Calls]:
    """Run the plain model, and see what the weights enter."""
    plain = in_training(copy_of(subject.plain))
    sites = sites_by_name(subject.net)
    seen: dict[str, Calls] = {}
    for name in chosen:
        site = sites[name]
        prefix = name.removesuffix(site.weight_name)
        bias = site.bias_name if site.is_bias_joined else None
        own = None if bias is None else plain.get_parameter(prefix + bias)
        seen[name] = Calls(plain.get_parameter(name), own)
    # The fused recurrence of oneDNN is no linear operation; what it stands for is several.
    with torch.backends.mkldnn.flags(enabled=False), seen_by(list(seen.values())):
        subject.forward(plain)
    return seen


def _error(layer: FisherLayer, calls: Calls) -> float | str:
    """Compare the products of a factor with those of the Jacobian, or say why not."""
    if layer.unseen:
        return "nothing of them was observed"
    if calls.unclear:
        return calls.unclear
    probe = kind_of(layer.spec).probe(layer.spec, layer.factor, PROBES, calls.has_every_bias)
    if probe is None:
        return f"a {layer.kind} factor is no second moment of the inputs alone"
    with_bias = layer.has_bias and calls.has_every_bias
    size = layer.layout.width + with_bias
    found = probe.products.reshape(layer.groups or 1, *probe.vectors.shape)
    vectors = probe.vectors if with_bias else probe.vectors[: layer.layout.width]
    products = second_moment_products(calls, layer.layout, vectors)
    if isinstance(products, str):
        return products
    kept = probe.kept[:size]
    expected = products.mean(layer.rows_seen) * kept
    difference = float(torch.linalg.vector_norm(found[:, :size] * kept - expected))
    return difference / float(torch.linalg.vector_norm(expected)) if difference else 0.0
