"""Laws of a step: the root inverts the factor, and a step of SGD on w' is a natural one.

Legend: O outputs, K weights of one output, D = K + 1 with a bias (last); `w = w' R`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.weight_map import as_matrices
from sngd_compile.fold import fold
from sngd_compile.training.refresh import LocalSite, present_root
from sngd_compile.verification.function import NO_SITE
from sngd_compile.verification.report import Check, checked, unfit
from sngd_compile.verification.subject import Subject, copy_of, sites_by_name

LARGEST_WRITTEN_OUT = 512
"""D up to which a metric is written out; beyond it products with the root stand for it."""

NOISY = 8
"""Multiple of what one rounding of all parameters does to a gradient, that counts as rounding."""

MOST_MATRICES = 2**22
"""Elements of all matrices of a metric that is written out."""


def root_inverts_the_factor(subject: Subject) -> Check:
    """`(R^T R)^-1` is `scale G + damping`, as far as the kind keeps G."""
    if not subject.layers:
        return unfit("root", NO_SITE)
    sites = sites_by_name(subject.refreshed)
    renewed = [sites[name].fisher for name in subject.renewed]
    names = dict(zip(renewed, subject.renewed, strict=True))
    found = {names[layer]: _root_error(layer) for layer in renewed}
    errors = {name: error for name, error in found.items() if error is not None}
    remark = f"compared for {len(errors)} of {len(sites)} weights: sketches, D above "
    remark += f"{LARGEST_WRITTEN_OUT}, matrices of single units and roots that stayed are left out"
    if not errors:
        return unfit("root", remark)
    return checked("root", errors, subject.bound, remark if len(errors) < len(sites) else "")


def _root_error(layer: FisherLayer) -> float | None:
    spec = layer.spec
    probe = kind_of(spec).probe(spec, layer.factor, 4, True)
    if probe is None or layer.root_buffers.columns or not _is_written_out(layer):
        return None
    expected = layer.scale * probe.products + layer.damping * probe.vectors
    expected = expected * probe.kept
    found = (layer.metric() @ probe.vectors) * probe.kept
    return _ratio(found - expected, expected)


def step_is_natural(subject: Subject) -> Check:
    """A step of `torch.optim.SGD` on w' moves w by `-lr g G^-1`, g the gradient of the plain model.

    Each weight has a rate of its own, with which its step is as long as itself: so that rounding is
    small beside it. No trust region shortens it.
    """
    if not subject.layers:
        return unfit("natural step", NO_SITE)
    net, plain = copy_of(subject.refreshed), fold(subject.refreshed)
    other = rounded_(copy_of(plain))
    for model in (net, plain, other):
        subject.train_on_batch(model)
    sites = {name: s for name, s in sites_by_name(net).items() if _has_sound_gradient(s)}
    if not sites:
        return unfit("natural step", "no reconstructed weight has a gradient: finite, and not 0")
    rates = {name: _rate(site) for name, site in sites.items()}
    before = {name: _folded(site) for name, site in sites.items()}
    groups = [
        {"params": [p for p in (s.weight, s.bias) if p is not None], "lr": rates[name]}
        for name, s in sites.items()
    ]
    for site in sites.values():
        site.fisher.config = site.fisher.config.replace(trust_radius=None, trust_share=None)
    torch.optim.SGD(groups, lr=0.0).step()
    errors = {}
    for name, site in sites.items():
        gradient = _gradient(plain, name, site)
        noise = NOISY / subject.bound * (gradient - _gradient(other, name, site))
        moved = (before[name] - _folded(site)) / rates[name]
        errors[name] = _step_error(site, moved, gradient, noise)
    left = len(subject.layers) - len(sites)
    remark = f"{left} weights had no gradient, or one of zeros" if left else ""
    return checked("natural step", errors, subject.bound, remark)


def _step_error(site: LocalSite, moved: Tensor, gradient: Tensor, noise: Tensor) -> float:
    """Compare what a step did to `[W b]` with what a natural one does, in the metric's own norm.

    Args:
        site: The weight.
        moved: By how much the step has lowered `[W b]`, `[*, O, D]`, over the learning rate.
        gradient: Of the plain model.
        noise: What is no smaller than the error that rounding explains, over the bound.
    """
    layer, root = site.fisher, present_root(site.fisher, torch.float64)
    expected, least = (_mapped(root.to_prime, layer, each) for each in (gradient, noise))
    if not _is_written_out(layer):
        return _ratio(_mapped(root.unfold, layer, moved) - expected, expected, least)
    metric = layer.metric().reshape(-1, layer.size, layer.size)
    steps = moved.reshape(len(metric), -1, layer.size)
    measured = (steps @ metric).reshape(moved.shape)
    outputs = layer.output_root
    if outputs is not None:
        inverse = torch.linalg.inv(outputs.double())
        measured = inverse @ inverse.mT @ measured
    return _ratio(_mapped(root.to_prime, layer, measured) - expected, expected, least)


@torch.no_grad()
def rounded_(model: nn.Module) -> nn.Module:
    """Change each number of the parameters by about one rounding, up or down."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            signs = torch.randint(2, parameter.shape, device=parameter.device).mul_(2).sub_(1)
            parameter.mul_((1 + signs * torch.finfo(parameter.dtype).eps).to(parameter.dtype))
    return model


def _gradient(plain: nn.Module, name: str, site: LocalSite) -> Tensor:
    """Return the gradient of the plain model as `[*, O, D]`."""
    prefix = name.removesuffix(site.weight_name)
    names = [name] if site.bias_name is None else [name, prefix + site.bias_name]
    found = [plain.get_parameter(each) for each in names]
    given = [torch.zeros_like(p) if p.grad is None else p.grad for p in found]
    return _rows(site, given[0], given[1] if len(given) > 1 else None)


def _folded(site: LocalSite) -> Tensor:
    """Return `[W b]` `[*, O, D]` in float64."""
    root = present_root(site.fisher, torch.float64)
    rows = _rows(site, site.weight.detach(), None if site.bias is None else site.bias.detach())
    return _mapped(root.fold, site.fisher, rows)


def _rows(site: LocalSite, weight: Tensor, bias: Tensor | None) -> Tensor:
    layer = site.fisher
    joined = bias if layer.has_bias else None
    matrices, vectors = as_matrices(layer.layout, weight, joined, torch.float64)
    return matrices if vectors is None else torch.cat([matrices, vectors[..., None]], -1)


def _mapped(change: object, layer: FisherLayer, rows: Tensor) -> Tensor:
    """Apply one of the maps of a root to `[*, O, D]`."""
    bias = rows[..., -1] if layer.has_bias else None
    weight, moved = change(rows[..., : layer.layout.width], bias)  # type: ignore[operator]
    return weight if bias is None else torch.cat([weight, moved[..., None]], -1)


def _has_sound_gradient(site: LocalSite) -> bool:
    gradient = site.weight.grad
    if gradient is None or not bool(gradient.isfinite().all()):
        return False
    return bool(gradient.any())


def _rate(site: LocalSite) -> float:
    assert site.weight.grad is not None
    size = float(torch.linalg.vector_norm(site.weight.detach().double()))
    slope = float(torch.linalg.vector_norm(site.weight.grad.double()))
    rate = size / slope
    return rate if rate and math.isfinite(rate) else 1.0


def _is_written_out(layer: FisherLayer) -> bool:
    matrices = layer.layout.all_outputs if kind_of(layer.spec).sees_outputs else layer.groups or 1
    return layer.size <= LARGEST_WRITTEN_OUT and matrices * layer.size**2 <= MOST_MATRICES


def _ratio(difference: Tensor, *expected: Tensor) -> float:
    """Return the size of a difference over the largest of those that are given."""
    size = float(torch.linalg.vector_norm(difference))
    scale = max(float(torch.linalg.vector_norm(each)) for each in expected)
    return (size / scale if scale else math.inf) if size else 0.0
