"""Bugs in what is made of the statistics: averages, damping, roots, refreshes, folding."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F

import sngd_compile.modules.portable_state
import sngd_compile.modules.reconstructed
import sngd_compile.modules.writable_weight
from bug import CONVOLUTION, LINEAR, TRAJECTORY, caught_by, wrap
from sngd_compile.config import Config
from sngd_compile.fisher import folding, transforms, weight_map
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.cholesky import CholeskyRoot
from sngd_compile.fisher.roots.sketch import SketchRoot
from sngd_compile.fisher.roots.symmetric import SymmetricRoot
from sngd_compile.layout import Layout
from sngd_compile.modules import weight_gradients, whole_network
from sngd_compile.training import coordinates, refresh
from sngd_compile.training.change_guard import ChangeGuard

WIDTH = ("tests/theorem/test_width.py", "-k", "divided")


def change_damping(factor: Callable[[FisherLayer], float]) -> None:
    """Scale the damping that is relative to the trace."""

    def damped(original: Any, fisher: FisherLayer) -> Any:
        config = fisher.config
        relative = config.damping_rel_trace * factor(fisher)
        fisher.config = config.replace(damping_rel_trace=relative)
        found = original(fisher)
        fisher.config = config
        return found

    wrap(FisherLayer, "damped", damped)


def wrap_decomposition(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let both kinds of root decompose a changed matrix."""

    def damped(original: Any, fisher: FisherLayer) -> Any:
        found = original(fisher)
        return tuple((change(matrix), damping) for matrix, damping in found)

    wrap(FisherLayer, "damped", damped)


@caught_by(LINEAR)
def average_without_bias_correction() -> None:
    """The average over time starts from zero and is not corrected for it."""

    def absorb(original: Any, fisher: FisherLayer) -> bool:
        fisher.average_weight.fill_(1.0)
        return original(fisher)

    wrap(FisherLayer, "absorb_", absorb)


@caught_by(TRAJECTORY)
def average_decays_per_refresh() -> None:
    """The average decays once a refresh, however many steps were observed."""

    def absorb(original: Any, fisher: FisherLayer) -> bool:
        fisher.schedule.observed_steps = 1
        return original(fisher)

    wrap(FisherLayer, "absorb_", absorb)


@caught_by(LINEAR)
def damping_by_mean_eigenvalue() -> None:
    """The damping is relative to trace / D."""
    change_damping(lambda fisher: 1 / fisher.size)


@caught_by(CONVOLUTION)
def damping_by_the_trace_of_all_groups() -> None:
    """The damping of a grouped convolution is relative to the sum of its traces."""
    change_damping(lambda fisher: fisher.groups or 1)


@caught_by(LINEAR)
def inverse_for_root() -> None:
    """R is the inverse of the damped factor, not a root of it."""
    wrap_decomposition(lambda damped: damped @ damped)


@caught_by(LINEAR)
def root_one_percent_off() -> None:
    """R is 1 % too long."""
    wrap_decomposition(lambda damped: damped / 1.01**2)


@caught_by(("tests/fisher/roots/test_maps.py",))
def a_middle_taken_for_symmetric() -> None:
    """The gradient of a sketched layer is mapped by `R`, not by `R^T`."""
    SketchRoot.to_prime, SketchRoot.from_prime = SketchRoot.fold, SketchRoot.unfold


@caught_by(("tests/fisher/test_sketch.py",))
def a_tail_of_the_damping_alone() -> None:
    """What a sketch leaves out has no eigenvalues: the trace counts for nothing."""

    def decompose(original: Any, damped: Any, roots: Any) -> Any:
        damped[..., -3, 0] = 0.0
        return original(damped, roots)

    wrap(SketchRoot, "decompose", decompose)


@caught_by(LINEAR)
def transposed_root() -> None:
    """The rows are rotated with R^T."""

    def linear(original: Any, root: CholeskyRoot, rows: Any, weight: Any, bias: Any) -> Any:
        matrix = root.matrix()
        if bias is None:
            return rows @ matrix @ weight.mT
        return F.pad(rows, (0, 1), value=1.0) @ matrix @ torch.cat([weight, bias[:, None]], 1).mT

    wrap(CholeskyRoot, "linear", linear)


@caught_by(LINEAR)
def weights_not_rebased() -> None:
    """A refresh changes the root and leaves `w'` as it was."""
    ChangeGuard.allows = lambda self, change: True  # type: ignore[method-assign] - it would notice
    skip_move(lambda site, weight: weight is site.weight)


@caught_by(LINEAR)
def gradient_not_transported() -> None:
    """An accumulated gradient stays in the old coordinates."""
    skip_move(lambda site, weight: weight is site.weight.grad)


@caught_by(LINEAR)
def gradient_transported_like_a_weight() -> None:
    """An accumulated gradient moves by `R_old R_new^-1`."""
    for kind in (CholeskyRoot, SymmetricRoot):
        kind.to_prime, kind.from_prime = kind.unfold, kind.fold


def skip_move(is_skipped: Callable[[Any, Any], bool]) -> None:
    """Leave out one of the moves of a refresh."""

    def move(original: Any, site: Any, change: Any, dtype: Any, held: Any) -> None:
        if not is_skipped(site, held.weight):
            original(site, change, dtype, held)

    for module in (coordinates, refresh):
        wrap(module, "move_", move)


@caught_by(LINEAR)
def momentum_not_transported() -> None:
    """The momentum buffer stays in the old coordinates."""
    coordinates.LINEAR_STATES = ()


@caught_by(TRAJECTORY)
def refreshes_one_step_late() -> None:
    """Steps are counted from 0 where they should be counted from 1."""
    wrap(Config, "is_refreshed", lambda original, config, steps: original(config, steps - 1))


@caught_by(LINEAR)
def fold_returns_the_raw_weights() -> None:
    """Folding drops the Fisher layer and keeps `w'`."""
    sngd_compile.modules.reconstructed.reset_ = lambda site: None


@caught_by(WIDTH)
def mean_over_outputs_of_one_group() -> None:
    """`over_outputs="mean"` divides by the outputs of one group."""
    Layout.all_outputs = property(lambda layout: layout.outputs)  # type: ignore[assignment]


@caught_by(TRAJECTORY)
def mean_over_outputs_damps_the_sum() -> None:
    """With `over_outputs="mean"` the damping is relative to the trace before the division."""
    change_damping(lambda fisher: 1.0 / fisher.scale)


@caught_by(("tests/fisher/roots/test_map_weight.py", "-k", "adjoint"))
def gradients_of_an_opaque_fold_folded() -> None:
    """In a graph the gradient of `w' R` is `g R`."""
    weight_map.ADJOINT["fold"] = "fold"


@caught_by(("tests/compile/test_opaque.py", "-k", "tangent"))
def opaque_ops_under_a_jvp() -> None:
    """A jvp that is compiled passes through an op that drops its tangents."""
    transforms.are_transforms_active = lambda: False


@caught_by(("tests/compile/test_forward_mode.py", "-k", "tangents"))
def ops_that_drop_tangents() -> None:
    """Forward mode does not see into an op."""
    transforms.is_forward_mode = lambda: False


@caught_by(("tests/modules/test_averaging.py", "-k", "averaged_model_averages and shared"))
def averages_of_other_roots() -> None:
    """The copy in an averaged model keeps its root when the network gets a new one."""
    refresh.followers_of = lambda leader: ()


@caught_by(("tests/modules/test_writing.py", "-k", "is_that_of_the_plain and shared and clamped"))
def writes_are_lost() -> None:
    """What is written to a folded weight stays in the copy that was read."""
    sngd_compile.modules.writable_weight.write_ = lambda site, index, value: None


@caught_by(("tests/training/test_refused.py", "-k", "by_name"))
def every_root_is_taken() -> None:
    """A refresh that changes the function is not noticed."""
    refresh.ChangeGuard.allows = lambda self, change: True  # type: ignore[method-assign]


@caught_by(("tests/training/test_remainders.py", "-k", "one_rounding and shared"))
def roundings_of_half_precision_add_up() -> None:
    """A refresh moves w' without what the last one rounded away."""
    coordinates.completed = lambda parameter, remainder: (
        parameter if parameter is None or remainder is None else parameter.detach().float()
    )


@caught_by(("tests/training/test_mixed_precision.py", "-k", "plain_network and shared"))
def autocast_reaches_the_fold() -> None:
    """Weights are folded in the dtype of autocast."""
    folding.autocast_off = lambda device: nullcontext()


@caught_by(("tests/training/test_bias_apart.py", "-k", "shared"))
def biases_are_never_parted() -> None:
    """A bias shares the coordinates of its weight, however optimizers train the two."""
    refresh.LocalSite.part_bias_ = lambda site, optimizers: None


@caught_by(("tests/training/test_bias_apart.py", "-k", "parting"))
def momentum_stays_when_biases_are_parted() -> None:
    """A velocity keeps the coordinates that weight and bias had together."""

    def change_form(original: Any, site: Any, joined: bool, optimizers: Any) -> None:
        original(site, joined, ())

    wrap(refresh, "change_form_", change_form)


@caught_by(("tests/modules/test_not_the_parameter.py", "-k", "gradients"))
def gradient_of_the_prime_for_that_of_the_weight() -> None:
    """`torch.autograd.grad` by a weight gives the gradient of its parameter."""
    weight_gradients.of_folded = lambda site, index, weight, bias: bias if index else weight


@caught_by(("tests/training/test_foreign.py", "-k", "slow"))
def other_states_stay() -> None:
    """Only the momenta of torch's own optimizers move along at a refresh."""
    coordinates._is_signed = lambda state: False


@caught_by(("tests/training/test_interrupted.py", "-k", "given_up"))
def gradients_of_a_step_that_was_given_up() -> None:
    """The gradients at outputs of a step that was given up count in the next one."""
    whole_network._forget_abandoned_ = lambda members: None


@caught_by(("tests/modules/test_portable_state.py", "-k", "handed_over"))
def primes_in_states_that_are_handed_over() -> None:
    """`save_pretrained` writes w' where it is handed a state."""
    sngd_compile.modules.portable_state._fold_handed_ = lambda *arguments: None


@caught_by(("tests/modules/test_portable_state.py", "-k", "plain_model"))
def primes_in_files_for_plain_models() -> None:
    """`save_pretrained` writes w' for w."""
    sngd_compile.modules.portable_state.is_for_plain_models = lambda: False
