"""What surrounds an optimizer's step without a line of the user's: guard, count, refresh.

The hooks are global, so any `torch.optim` optimizer is seen, wrapped or not. They touch an
optimizer only where it owns parameters of a reconstructed module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import isfinite
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from sngd_compile.errors import SngdWarning
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.ties import Ties
from sngd_compile.torch_private import (
    OUTSIDE_BACKWARD,
    backward_pass,
    tree_leaves,
)
from sngd_compile.training.averaged_copies import (
    remember_copies,
    warn_of_averages,
    warn_of_restored,
    warn_of_twins,
)
from sngd_compile.training.bias_groups import Pair, part_biases_
from sngd_compile.training.data_parallel import close_steps_, find_groups
from sngd_compile.training.intact import check_distinct, parameters_of, remember, sites_or_error
from sngd_compile.training.refresh import LocalSite, change_root_, refresh_sites
from sngd_compile.training.remainders import fit_remainders_
from sngd_compile.training.sharding import held_here, squares_of
from sngd_compile.training.site import Site
from sngd_compile.training.steps.backward import after_backward
from sngd_compile.training.steps.finite_gradients import drop_non_finite
from sngd_compile.training.steps.running_steps import (
    is_made_for_states,
    note_backward,
    running_steps,
    stepped_in_backward,
)
from sngd_compile.training.steps.trust_region import reaches, shorten_
from sngd_compile.training.warnings import warn_of_rejected, warn_of_unobserved


class SiteOwner(Protocol):
    """A reconstructed module, or the state of a parameter: it lists its live sites."""

    def local_sites(self) -> Sequence[Site]:
        """Return one record per reconstructed weight."""
        ...


@dataclass(frozen=True)
class Binding:
    """The sites whose weights one optimizer steps, and what must hold for the list to be valid.

    `descends` says whether the steps are those of SGD: its own, or of one that it holds.
    """

    sites: list[Site]
    descends: bool
    weights: list[Tensor]
    owns_any: bool
    group_sizes: list[int]
    generation: int
    pairs: list[Pair]


_owners: WeakSet[Any] = WeakSet()
# Counts changes of the set of owners, so that a step asks one number whether its list still holds.
_generation = 0
_bindings: WeakKeyDictionary[Optimizer, Binding] = WeakKeyDictionary()
_skipped: WeakSet[Optimizer] = WeakSet()


def register_owner(owner: SiteOwner | nn.Module) -> None:
    """Make who owns sites (a copy of one too) known to the hooks, and the hooks to torch."""
    global _generation
    _install_hooks()
    _owners.add(owner)
    if isinstance(owner, nn.Module):
        remember(owner)
        for site in sites_or_error(owner)[0]:
            site.fisher.ties.first_squares = squares_of(site.weight)
            fit_remainders_(site.fisher, site.weight, site.bias)
    _generation += 1


def register_copy(module: nn.Module) -> None:
    """Make a module known that was copied or read from a file."""
    register_owner(module)
    remember_copies(site for site in sites_of([module]) if isinstance(site, LocalSite))


def release_owner(module: nn.Module) -> None:
    """Forget a module that was folded in place."""
    global _generation
    _owners.discard(module)
    _generation += 1


def changes_of_owners() -> int:
    """Count how often a module was reconstructed, copied or folded in this process."""
    return _generation


def known_optimizers() -> list[Optimizer]:
    """Return the optimizers that have stepped parameters of reconstructed modules."""
    return [optimizer for optimizer, binding in _bindings.items() if binding.owns_any]


def optimizers_of(weight: Tensor) -> list[Optimizer]:
    """Return the optimizers that have stepped one reconstructed weight and are alive."""
    found = [(optimizer, binding.weights) for optimizer, binding in _bindings.items()]
    return [optimizer for optimizer, weights in found if any(w is weight for w in weights)]


def name_of_layer(parameter: Tensor) -> str | None:
    """Name the layer of which a parameter is `w'` or `b'`; None of any other parameter."""
    sites = _listed(_owners, lambda owner: False)
    held = (site for site in sites if parameter is site.weight or parameter is site.bias)
    return next((site.fisher.name for site in held if isinstance(site, LocalSite)), None)


def sites_of(modules: Iterable[Any]) -> list[Site]:
    """List the live sites of those modules that are reconstructed.

    Raises:
        ModelError: Other code damaged one of them.
    """
    return _listed([module for module in modules if module in _owners], lambda owner: True)


def _listed(owners: Iterable[Any], concerns: Callable[[Any], bool]) -> list[Site]:
    """List the sites of all owners that are whole.

    Args:
        owners: Every one of this process, or those of one network.
        concerns: Says of a damaged one whether the caller uses it; the others are left out, for
            who damaged a network must not stop the training of another.

    Raises:
        ModelError: One that concerns the caller is damaged.
    """
    found: list[Site] = []
    for owner in list(owners):
        sites, error = sites_or_error(owner)
        if error is not None and concerns(owner):
            raise error
        found += sites
    return found


def steps_reconstructed_only(optimizer: Optimizer) -> bool:
    """Say whether all that an optimizer steps is held by modules that are reconstructed."""
    # Read from the dictionary itself: other code may have damaged one of these modules.
    held = [
        owner.__dict__.get("_parameters") or {} for owner in _owners if isinstance(owner, nn.Module)
    ]
    owned = {id(parameter) for parameters in held for parameter in parameters.values()}
    return all(id(p) in owned for group in optimizer.param_groups for p in group["params"])


def reset_(site: LocalSite) -> None:
    """Return a root to the identity: `w'` becomes the ordinary `w`, in float64, momenta too."""
    held = (site.weight, site.bias, site.fisher.sum)
    # On meta are no numbers yet, and half a pair has none either.
    if not any(tensor.is_meta for tensor in held if tensor is not None):
        site.fisher.forget_remainders_()  # the ordinary w is the one that the network computes with
        change_root_(site, site.fisher.new_root(torch.float64), known_optimizers())
    site.fisher.forget_()


def _bind(optimizer: Optimizer) -> Binding:
    """Return the optimizer's binding, found anew when it or the reconstructed modules changed."""
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    known = _bindings.get(optimizer)
    if known and known.generation == _generation and known.group_sizes == sizes:
        held = zip(known.sites, known.weights, strict=True)
        if all(site.holds(w) for site, w in held) and all(pair.is_alike for pair in known.pairs):
            return known
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    owned = {id(p): index for index, p in enumerate(parameters)}

    def is_driven(owner: Any) -> bool:
        return any(id(parameter) in owned for parameter in parameters_of(owner))

    # An owner that is damaged stops the optimizer that drives it, and no other.
    everywhere = _listed(_owners, is_driven)
    # In the order of the optimizer: processes that train in parallel refresh in the same one.
    driven = [site for site in everywhere if id(site.weight) in owned]
    driven.sort(key=lambda site: owned[id(site.weight)])
    sites = list({id(site.fisher): site for site in driven}.values())  # shallow copies share one
    of_biases = [site for site in everywhere if id(site.bias) in owned]
    check_distinct(sites)
    owns_any = bool(sites or of_biases)
    weights: list[Tensor] = [site.weight for site in sites]
    find_groups((site.weight, site.fisher) for site in sites)
    for site in sites:
        site.fisher.ties.stand_alone(site.fisher)
    descends = any(isinstance(one, torch.optim.SGD) for one in _with_held(optimizer))
    binding = Binding(sites, descends, weights, owns_any, sizes, _generation, [])
    if known is None:
        _warn_of_unsuited(optimizer, sites)
    _bindings[optimizer] = binding
    _settle_biases(optimizer, binding, list({id(s.fisher): s for s in driven + of_biases}.values()))
    return binding


def _warn_of_unsuited(optimizer: Optimizer, sites: Sequence[Site]) -> None:
    others = [site.fisher for site in sites if not suits(optimizer, site.fisher)]
    if others:
        warnings.warn(
            f"{type(optimizer).__name__} steps {len(others)} reconstructed weights, "
            f"{others[0].name} among them: it scales the gradient of w' again, so this is "
            "not natural gradient descent. Use torch.optim.SGD on the same parameters, or "
            "torch.optim.Muon with Config.muon().",
            SngdWarning,
            stacklevel=3,
        )


def suits(optimizer: Optimizer, fisher: FisherLayer) -> bool:
    """Say whether an optimizer's steps on a weight are those of the method.

    SGD leaves gradients as they are, and one that holds others lets those decide. Muon's steps are
    the same whatever root the inputs are made white by, and as long as on `w` with a gain of one.
    """
    if isinstance(optimizer, torch.optim.Muon):
        return fisher.config.unit_gain
    return isinstance(optimizer, torch.optim.SGD) or len(_with_held(optimizer)) > 1


def _with_held(optimizer: Optimizer) -> list[Optimizer]:
    """Return an optimizer and those that it holds, which step inside its step."""
    if type(optimizer) is torch.optim.SGD:
        return [optimizer]  # asked for in the middle of training: no need to look
    held = tree_leaves(list(vars(optimizer).values()))
    return [optimizer, *(value for value in held if isinstance(value, Optimizer))]


def _outermost(sites: Iterable[Site], around: Iterable[Optimizer]) -> list[Site]:
    """Leave those sites out that an optimizer around steps too."""
    known = [_bindings[other] for other in around if other in _bindings]
    inside = {id(site.fisher) for binding in known for site in binding.sites}
    return [site for site in sites if id(site.fisher) not in inside]


def _settle_biases(optimizer: Optimizer, binding: Binding, sites: list[Site]) -> None:
    """Part the biases that are not trained as their weights are."""
    around = [other for other in running_steps() if other is not optimizer]
    sites = _outermost(sites, around)
    if backward_pass() == OUTSIDE_BACKWARD:
        binding.pairs.extend(part_biases_(sites, _with_held(optimizer), known_optimizers()))
        return

    # Each of many optimizers has its own parameter then, and the last of them has not stepped yet.
    def settle() -> None:
        binding.pairs.extend(part_biases_(sites, stepped_in_backward(), known_optimizers()))

    after_backward(settle)


def before_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Drop a step whose gradients are not finite, before it reaches a weight."""
    note_backward(optimizer)
    binding = _bind(optimizer)
    _skipped.discard(optimizer)
    if not binding.owns_any:
        return None
    grad_scale = getattr(optimizer, "grad_scale", None)
    if grad_scale is not None:  # a fused optimizer divides the gradients itself, and skips steps
        held = partial(_with_held, optimizer)
        shorten_(reaches(binding.sites, held, float(grad_scale)))
        return None
    if is_made_for_states(optimizer):
        _skipped.add(optimizer)
        return None
    first = binding.sites[0] if binding.sites else None
    # Who gives parameters back gives back all of them: one is looked at.
    if isinstance(first, LocalSite) and first.fisher.ties.copies:
        warn_of_restored([first])
    _look_at_gradients(optimizer, binding)
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        return None

    # With a closure the gradients are made inside the step, so they are looked at there.
    def guarded() -> Any:
        loss = closure()
        _look_at_gradients(optimizer, binding)
        return loss

    return (args[0], guarded), {name: value for name, value in kwargs.items() if name != "closure"}


def after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Count the step of every site the optimizer drives, and refresh those that are due."""
    # A fused optimizer under GradScaler skips its step inside the kernel, and says so here only.
    found_inf = getattr(optimizer, "found_inf", None)
    # As before the step: nothing rebinds an optimizer in the middle of its own.
    sites = (_bindings.get(optimizer) or _bind(optimizer)).sites
    sites = _outermost(sites, running_steps()[1:])
    if optimizer in _skipped or (found_inf is not None and bool(found_inf)):
        for site in sites:
            site.fisher.close_step_(valid=False)
        return
    observed = [site.fisher for site in sites if site.fisher.schedule.observing]
    due = [site for site in sites if site.fisher.schedule.advance()]
    learning = [site for site in due if _learns_unobserved(site)]
    if observed or due:
        after_backward(lambda: _end_step(observed, due, learning))


def _end_step(observed: list[FisherLayer], due: list[Site], learning: list[Site]) -> None:
    """Close a step that was observed, and refresh what is due."""
    close_steps_(observed)
    warn_of_rejected(observed)
    blind = [site.fisher for site in learning if site.fisher.unseen]
    warn_of_unobserved([fisher for fisher in blind if "rejected" not in fisher.warned])
    if due:
        _warn_of_averages([site.fisher for site in due])
        refresh_sites(due, known_optimizers())


def _warn_of_averages(leaders: list[FisherLayer]) -> None:
    """Look for copies of layers that are due which somebody averages."""
    if any(fisher.ties.twins for fisher in leaders):
        groups = [group for optimizer in _bindings for group in optimizer.param_groups]
        warn_of_twins(leaders, {id(p) for group in groups for p in group["params"]})
    if Ties.copied:
        stepped = {id(site.fisher) for known in _bindings.values() for site in known.sites}
        everywhere = _listed(_owners, lambda owner: False)
        others = [site for site in everywhere if id(site.fisher) not in stepped]
        warn_of_averages([site for site in others if isinstance(site, LocalSite)], leaders)


def _learns_unobserved(site: Site) -> bool:
    """Say whether a weight learns although this process has observed nothing of its inputs."""
    gradient, fisher = site.weight.grad, site.fisher
    if gradient is None or not fisher.unseen:
        return False
    # An empty batch has a gradient too, of zeros. Only what lies here is looked at: others may have
    # observed something, and would not take part in gathering it.
    return bool(held_here(gradient).any())


def _look_at_gradients(optimizer: Optimizer, binding: Binding) -> None:
    """Drop a step that is not finite, and keep a step of descent in the layers' trust regions."""
    # Other optimizers make steps of their own length of a gradient. One that holds several has the
    # whole layer, of which those may have a part each.
    outside = _outermost(binding.sites, running_steps()[1:]) if binding.descends else []
    found = reaches(outside, partial(_with_held, optimizer))
    finite = [gradient for reach in found if isfinite(reach.length) for gradient in reach.gradients]
    if drop_non_finite(optimizer, binding.sites, finite):
        shorten_(found)
    else:
        _skipped.add(optimizer)


@cache
def _install_hooks() -> None:
    # A compiled step must not trace them: what they count is no part of its graph.
    register_optimizer_step_pre_hook(torch.compiler.disable(before_step))
    register_optimizer_step_post_hook(torch.compiler.disable(after_step))
