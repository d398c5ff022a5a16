"""Bugs in what is done to the gradients of a step."""

from dataclasses import replace
from typing import Any

from bug import caught_by, wrap
from sngd_compile.backend import entry
from sngd_compile.fisher import layer, next_roots
from sngd_compile.fisher.kinds.kronecker import Kronecker
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.trust import Trust
from sngd_compile.plan.planner import _Planner
from sngd_compile.training import optimizer_hooks
from sngd_compile.training.steps import trust_region

TESTS = "tests/training/test_trust_region.py"
ADAPTS = "tests/training/test_trust_adapts.py"


@caught_by((TESTS, "-k", "free"))
def last_layer_as_the_others() -> None:
    """No layer is the last."""
    wrap(_Planner, "_last", lambda original, planner, weights: None)


@caught_by((TESTS, "-k", "outputs_move"))
def length_of_the_weight_alone() -> None:
    """The bias has no part in the length of a step."""

    def lengths(original: Any, tensors: Any) -> Any:
        return [
            0.0 if tensor.dim() == 1 else n
            for tensor, n in zip(tensors, original(tensors), strict=True)
        ]

    wrap(trust_region, "_lengths", lengths)


@caught_by((TESTS, "-k", "kronecker"))
def one_unit_for_all_kinds() -> None:
    """A kind with an output side has the bound of the others."""
    Kronecker.measures_outputs = False


@caught_by((TESTS, "-k", "scaled"))
def bound_of_scaled_gradients() -> None:
    """What a fused optimizer still divides is bounded as if it were divided."""
    wrap(optimizer_hooks, "reaches", lambda original, sites, held, scale=1.0: original(sites, held))


@caught_by((TESTS, "-k", "descent"))
def every_optimizer_is_bounded() -> None:
    """Optimizers that are no descent have their gradients shortened too."""
    original = optimizer_hooks._look_at_gradients

    def look(optimizer: Any, binding: Any) -> None:
        original(optimizer, binding)
        trust_region.shorten_(trust_region.reaches(binding.sites, list))

    optimizer_hooks._look_at_gradients = look


@caught_by((TESTS, "-k", "squares"))
def overflow_is_a_length() -> None:
    """A length whose square has left its dtype shortens nothing."""

    def lengths(original: Any, tensors: Any) -> Any:
        return trust_region._norms(list(tensors)).tolist()

    wrap(trust_region, "_lengths", lengths)


@caught_by((TESTS, "-k", "never_turned"))
def only_the_weight_is_shortened() -> None:
    """The gradient of a bias keeps its length."""

    def shorten(original: Any, found: Any) -> None:
        original([replace(one, gradients=one.gradients[:1]) for one in found])

    wrap(optimizer_hooks, "shorten_", shorten)


@caught_by(("tests/training/test_trust_region.py", "-k", "both_ways", "-m", ""))
def no_frame_has_a_last_weight() -> None:
    """Of a compiled model no weight is the last."""
    wrap(entry, "become_last", lambda original, state: None)


@caught_by((ADAPTS, "-k", "agreements"))
def agreement_of_the_weight_alone() -> None:
    """The momentum of a bias has no part in how steps agree."""

    def products(original: Any, pairs: Any) -> Any:
        return [
            0.0 if one.dim() == 1 else n for (one, _), n in zip(pairs, original(pairs), strict=True)
        ]

    wrap(trust_region, "_products", products)


@caught_by((ADAPTS, "-k", "take_each_other_back"))
def momentum_of_maximize_is_taken_as_it_is() -> None:
    """Where a loss is maximized, momentum points the other way."""

    def momenta(original: Any, optimizers: Any) -> Any:
        return {
            id(p): one.state[p]["momentum_buffer"]
            for one in optimizers
            for group in one.param_groups
            for p in group["params"]
            if one.state.get(p)
        }

    wrap(trust_region, "_momenta_of", momenta)


@caught_by((ADAPTS, "-k", "resumed"))
def a_resumed_run_begins_with_a_whole_region() -> None:
    """What was learned of a trust region is lost in a file."""
    wrap(Trust, "from_fields", lambda original, fields: Trust())


@caught_by((ADAPTS, "-k", "coordinates"))
def size_in_old_coordinates() -> None:
    """After a change of the root `|w'|` stays what it was."""
    FisherLayer.note_change_ = lambda layer: layer.ties.expect_change()


@caught_by((ADAPTS, "-k", "share_of_the_bound"))
def regions_are_always_whole() -> None:
    """What a layer has of its region bounds nothing."""
    original = trust_region.bound_of

    def bound(fisher: Any, trust: Any) -> float:
        return original(fisher, trust) / trust.share

    trust_region.bound_of = bound


@caught_by(("tests/fisher/test_unit_gain.py", "-k", "metric"))
def damping_without_the_gain() -> None:
    """The damping of a root that was scaled is said to be the one before."""

    def scaled(original: Any, layer: Any, found: Any) -> Any:
        return replace(original(layer, found), dampings=found.dampings)

    wrap(next_roots, "_of_unit_gain", scaled)


@caught_by(("tests/fisher/test_unit_gain.py", "-k", "files"))
def gains_are_not_in_files() -> None:
    """A state is read as if its root had not been scaled."""
    wrap(layer, "unpacked", lambda original, state: replace(original(state), gain=1.0))


@caught_by(("tests/bad_input/test_non_finite.py", "-k", "skipped and None"))
def skipped_steps_are_remembered() -> None:
    """A layer learns of its trust region from a step that is dropped."""
    original = trust_region.reaches

    def reaches(*args: Any) -> Any:
        found = original(*args)
        for one in found:
            one.fisher.trust = one.trust
        return found

    optimizer_hooks.reaches = reaches
