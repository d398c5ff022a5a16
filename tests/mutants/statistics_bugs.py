"""Bugs in what is observed: rows, their geometry, when they count."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sngd_compile.modules.reconstructed
import sngd_kernels.precision
from bug import CONVOLUTION, LINEAR, MAX_ROWS, TRAJECTORY, caught_by, wrap
from sngd_compile.config import Config
from sngd_compile.fisher import observe
from sngd_compile.fisher.layer import ROWS, FisherLayer
from sngd_compile.modules.reconstructed import Reconstructed
from sngd_compile.passes import PASSES
from sngd_compile.passes.observe import observe_
from sngd_compile.rules import Rule
from sngd_compile.rules.convolution import Convolution, Geometry
from sngd_compile.rules.linear import Linear
from sngd_kernels import batching


def before_absorbing(change: Callable[[FisherLayer], Any]) -> None:
    """Change a Fisher layer just before its sum enters the average over time."""

    def absorb(original: Any, fisher: FisherLayer) -> bool:
        if fisher.tally[ROWS]:
            change(fisher)
        return original(fisher)

    wrap(FisherLayer, "absorb_", absorb)


def change_moment(rule: type[Rule], change: Callable[[Tensor], Tensor]) -> None:
    """Change the second moment of one forward pass."""

    def second_moment(original: Any, rule: Rule, samples: Any, geometry: Any, bias: bool, out: Any):
        return out.add_(change(original(rule, samples, geometry, bias, torch.zeros_like(out))))

    wrap(rule, "second_moment", second_moment)


def change_geometry(**changes: Callable[[Geometry], tuple[int, ...]]) -> None:
    """Let the statistics of a convolution read other numbers than the convolution."""
    decode = Geometry.decode

    def changed(numbers: tuple[int, ...]) -> Geometry:
        geometry = decode(numbers)
        return replace(geometry, **{name: change(geometry) for name, change in changes.items()})

    Geometry.decode = changed


@caught_by(LINEAR)
def sum_for_mean() -> None:
    """The factor is the sum of the outer products."""
    before_absorbing(lambda fisher: fisher.tally[ROWS].fill_(1))


@caught_by(("tests/training/test_function_transforms.py", "-k", "shared"))
def one_sample_of_a_mapped_axis() -> None:
    """Of samples that `torch.vmap` goes through the first one is observed, each time."""
    wrap(batching, "_entry", lambda original, argument, dim, entry: original(argument, dim, 0))


@caught_by(LINEAR)
def count_off_by_one() -> None:
    """The mean divides by one row too many."""
    before_absorbing(lambda fisher: fisher.tally[ROWS].add_(1))


@caught_by(LINEAR)
def reduce_for_expand() -> None:
    """A sequence gives one row, its mean, instead of one row per position."""

    def samples(original: Any, rule: Linear, inputs: Any, geometry: Any) -> Any:
        means = [t.flatten(1, -2).mean(1) if t.dim() > 2 else t for t in inputs]
        return original(rule, means, geometry)

    wrap(Linear, "samples", samples)


@caught_by(CONVOLUTION)
def positions_summed() -> None:
    """An image gives one row, the sum of its patches."""

    def second_moment(original: Any, rule: Any, samples: Any, geometry: Any, bias: bool, out: Any):
        rows = F.pad(rule.rows(samples, geometry), (0, int(bias)), value=1.0)
        rows = rows.unflatten(-2, (len(samples[0]), -1)).sum(-2)
        return out.add_(rows.mT @ rows)

    wrap(Convolution, "second_moment", second_moment)


@caught_by(CONVOLUTION)
def conv_without_stride() -> None:
    """Patches are taken at every position."""
    change_geometry(stride=lambda geometry: (1,) * len(geometry.kernel))


@caught_by(CONVOLUTION)
def conv_without_padding() -> None:
    """The border is reflected where the layer reads zeros."""
    wrap(Geometry, "pad", pad_by_reflection)


def pad_by_reflection(original: Any, geometry: Geometry, images: Tensor) -> Any:
    """Surround images by copies of their border instead of zeros."""
    pairs = zip(reversed(geometry.before), reversed(geometry.after), strict=True)
    padded = F.pad(images, [side for pair in pairs for side in pair], mode="replicate")
    return padded, (0,) * len(geometry.kernel)


@caught_by(CONVOLUTION)
def conv_without_dilation() -> None:
    """Taps are neighbours, and the positions those of the layer."""

    def neighbours(geometry: Geometry) -> tuple[int, ...]:
        return (1,) * len(geometry.kernel)

    def shorter(geometry: Geometry) -> tuple[int, ...]:
        spans = zip(geometry.after, geometry.kernel, geometry.dilation, strict=True)
        return tuple(after - (d - 1) * (k - 1) for after, k, d in spans)

    change_geometry(dilation=neighbours, after=shorter)


@caught_by(CONVOLUTION)
def same_padding_on_the_wrong_side() -> None:
    """An even kernel's odd rest of the padding goes before the axis."""
    change_geometry(before=lambda g: g.after, after=lambda g: g.before)


@caught_by(CONVOLUTION)
def groups_mixed_up() -> None:
    """Each group gets the statistics of another."""
    change_moment(Convolution, lambda moment: moment.flip(0) if moment.dim() == 3 else moment)


@caught_by(LINEAR)
def truncated_rows() -> None:
    """The first row of a batch is dropped."""
    wrap(Linear, "samples", lambda original, *args: [t[1:] for t in original(*args)])


@caught_by(LINEAR)
def bias_column_dropped() -> None:
    """The factor forgets that inputs and the bias's 1 are correlated."""

    def uncorrelated(moment: Tensor) -> Tensor:
        moment[-1, :-1] = moment[:-1, -1] = 0.0
        return moment

    change_moment(Linear, uncorrelated)


@caught_by(LINEAR)
def one_use_of_two() -> None:
    """A weight that is called twice is observed once."""

    def observe_first(graph: Any, sites: Any) -> None:
        observe_(graph, [replace(site, uses=site.uses[:1]) for site in sites])

    passes = tuple(observe_first if item is observe_ else item for item in PASSES)
    sngd_compile.modules.reconstructed.PASSES = passes


@caught_by(LINEAR)
def observes_in_eval_mode() -> None:
    """Evaluation is counted as training."""
    Reconstructed.observing = property(lambda module: torch.is_grad_enabled())


@caught_by(LINEAR)
def observes_without_gradients() -> None:
    """Passes under no_grad are counted as training."""
    Reconstructed.observing = property(lambda module: module.training)


@caught_by(TRAJECTORY)
def observes_every_step() -> None:
    """The schedule of observed steps is ignored."""
    Config.is_observed = lambda config, step: True


@caught_by(MAX_ROWS)
def first_rows_instead_of_random() -> None:
    """A limit on rows always takes the first ones."""
    torch.randperm = lambda number, generator: torch.arange(number)


@caught_by(MAX_ROWS)
def rows_drawn_with_replacement() -> None:
    """A limit on rows may take one row twice."""
    torch.randperm = lambda number, generator: torch.randint(number, (number,), generator=generator)


@caught_by(("tests/modules/test_dtype.py", "-k", "squared"))
def squares_of_halves_overflow() -> None:
    """Halves are asked whether they are finite, and not whether their squares are."""

    def finite_samples(original: Any, samples: Any, *rest: Any) -> Any:
        wide, _ = original(samples, *rest)
        return wide, torch.stack([t.isfinite().all() for t in samples]).all()

    wrap(observe, "finite_samples", finite_samples)


@caught_by(("tests/ops/test_precision.py",))
def statistics_in_the_precision_of_the_network() -> None:
    """What was set for float32 products holds for second moments and roots too."""
    wrap(sngd_kernels.precision, "_is_exact", lambda original: True)


@caught_by(("tests/bad_input/test_non_finite.py", "-k", "device"))
def rejected_rows_become_zeros() -> None:
    """A rejected pass adds rows of zeros, which keep the 1 of their bias."""

    def zeros(original: Any, *arguments: Any) -> Any:
        wide, finite = original(*arguments)
        return [torch.where(finite, t, 0) if t.is_floating_point() else t for t in wide], finite

    def add(original: Any, sum: Tensor, finite: Tensor, add_: Any) -> None:
        original(sum, torch.ones_like(finite), add_)

    wrap(observe, "finite_samples", zeros)
    wrap(observe, "add_if_finite_", add)
