"""The extension point for local Fishers: shape, first root, damping, cost, and how one is observed.

Legend: O outputs, K weights of one output, D = K + 1 with a bias (last), K without; G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sngd_compile.config import Config
from sngd_compile.fisher.output_side import OutputSide
from sngd_compile.fisher.roots.apart import ApartRoot
from sngd_compile.fisher.roots.base import Root
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.fisher.statistics import Statistics
from sngd_compile.registry import KINDS, ROOTS

Damped = tuple[Tensor, float]
"""A matrix to decompose, and the damping that is in it."""


@dataclass(frozen=True)
class NextActivation:
    """The activation after every call of a weight: its name ("" for none), and why."""

    activation: str
    reason: str


class Uses(Protocol):
    """What the plan knows of a weight beside its layout, for a kind to decide on."""

    @property
    def config(self) -> Config:
        """The configuration of the weight."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weight."""
        ...

    @property
    def taps(self) -> int:
        """Neighbouring weights that belong to one input: the taps of a convolution, else 1."""
        ...

    @property
    def is_compiled(self) -> bool:
        """Whether its calls are in a frame compiled with `backend="sngd"`."""
        ...

    def hidden_outputs(self) -> str:
        """Say why the outputs of its calls cannot be seen, or ""."""
        ...

    def next_activation(self) -> NextActivation:
        """Say which activation follows every call."""
        ...


@dataclass(frozen=True)
class Probe:
    """Vectors, and the products of a factor with them as far as its kind keeps it.

    Args:
        vectors: `[D, n]`, float64.
        products: `[*, D, n]`, float64.
        kept: `[D, n]`, 1 where the product is that of the whole second moment, else 0.
    """

    vectors: Tensor
    products: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Choice:
    """A local Fisher that a weight can have, with a note for the plan."""

    spec: FisherSpec
    note: str = ""


class FisherKind:
    """One kind of local Fisher: a subclass with a `name`, registered by `@register_kind`.

    The defaults are those of one full matrix over the inputs of a layer, one for each group; what a
    subclass shares with it, it need not write. There is one instance, without state.

    Attributes:
        name: As in `Config.fisher`.
        is_diagonal: Whether factor and root are held as their diagonals.
        sees_outputs: Whether a layer's outputs are shown with its inputs.
        has_output_side: Whether the gradients at the outputs are observed too, in the backward.
        measures_outputs: Whether the unit of its steps is that of the outputs, so that
            `Config.over_outputs` has nothing to say.
        factor_words: What its factor is called where too few rows were seen for it.
    """

    name: ClassVar[str]
    is_diagonal: ClassVar[bool] = False
    sees_outputs: ClassVar[bool] = False
    has_output_side: ClassVar[bool] = False
    measures_outputs: ClassVar[bool] = False
    factor_words: ClassVar[str] = "a full factor"

    # ---- the plan

    def choose(self, spec: FisherSpec, uses: Uses) -> Choice | str:
        """Complete the record of a weight that is to have this kind, or say why it cannot.

        Args:
            spec: With this kind; what the configuration says is filled in.
            uses: What else the plan knows of the weight.
        """
        return Choice(spec)

    def factor_text(self, spec: FisherSpec) -> str:
        """Return number and size of the factors over the inputs, bias included."""
        groups = spec.layout.groups
        return f"{spec.size}" if groups is None else f"{groups} x {spec.size}"

    # ---- the numbers

    def factor_shape(self, spec: FisherSpec) -> tuple[int, ...]:
        """Return the shape of the factor over the inputs, as `FisherLayer.factor` holds it."""
        return (*spec.lead, spec.size, spec.size)

    def first_root(self, spec: FisherSpec, dtype: torch.dtype, device: torch.device) -> Root:
        """Return the identity as a root of this kind."""
        return spec.new_root(spec.size, spec.has_bias, spec.layout.groups, dtype, device)

    def output_side(self, spec: FisherSpec, device: torch.device) -> OutputSide | None:
        """Return where the gradients at the outputs are summed, if they are."""
        return OutputSide(spec.layout, device) if self.has_output_side else None

    def parts(self, spec: FisherSpec, factor: Tensor) -> list[Tensor]:
        """Return views of a factor: the matrices `[*, D, D]` that are decomposed one by one."""
        return [factor]

    def diagonal(self, part: Tensor) -> Tensor:
        """Return the diagonal of one part, `[*, D]`, a view."""
        return part.diagonal(dim1=-2, dim2=-1)

    def with_mirror(self, half: Tensor) -> Tensor:
        """Return the sum of half a part and its mirror image, a copy that is exactly symmetric.

        More than two processes add up each number in an order of its own: what they hold is
        symmetric to the rounding of its dtype, and for a root in a wider one that is not symmetric.
        """
        return half + half.mT

    def damped(
        self, spec: FisherSpec, factor: Tensor, outputs: OutputSide | None, config: Config
    ) -> tuple[Damped, ...]:
        """Return `scale G + damping` part by part; () for a factor of zeros, undamped.

        Args:
            spec: Of the layer.
            factor: G.
            outputs: The output side, of a kind that has one.
            config: With the strength of the damping.
        """
        strength = self.strength(spec, factor, config)
        if strength is None:
            return ()
        damping, dtype = strength
        halves = self.parts(spec, torch.mul(factor.to(dtype), spec.scale / 2))
        parts = [self.with_mirror(half) for half in halves]
        for part in parts:
            self.diagonal(part).add_(damping)
        return tuple((part, damping) for part in parts)

    def within_budget(
        self, spec: FisherSpec, factor: Tensor, rows: float, config: Config
    ) -> Tensor:
        """Return the part of a factor whose root costs at most `Config.step_budget`; here all.

        Args:
            spec: Of the layer.
            factor: G.
            rows: That a process observes in a step.
            config: With the budget.
        """
        return factor

    def trace(self, spec: FisherSpec, factor: Tensor) -> float:
        """Return the trace of a factor, for groups their mean."""
        # Not each its own: a fraction of the trace of a saturated unit, which is next to nothing,
        # would give it steps without bound (decision 13).
        return float(self.traces(spec, factor).mean())

    def traces(self, spec: FisherSpec, factor: Tensor) -> Tensor:
        """Return the trace of each group `[*]`, float64, from the diagonals of the parts."""
        diagonals = [self.diagonal(part) for part in self.parts(spec, factor)]
        return _by_group([diagonal.sum(-1).double() for diagonal in diagonals])

    def effective_rank(self, spec: FisherSpec, factor: Tensor, root: Root) -> Tensor:
        """Return `trace(G)^2 / trace(G^2)`, `[*]`, float64: D where all eigenvalues are equal.

        Args:
            spec: Of the layer.
            factor: G.
            root: Over the inputs, for a kind that keeps less than G in its factor.

        Returns:
            For each group; 0 for a factor of zeros.
        """
        parts = self.parts(spec, factor)
        return effective_rank(parts, [self.diagonal(part) for part in parts])

    def residual(self, spec: FisherSpec, factor: Tensor, root: Root) -> Tensor:
        """Return the share of the trace that the root knows only the mean of, `[*]`, float64."""
        return torch.zeros_like(self.traces(spec, factor))

    def strength(
        self, spec: FisherSpec, factor: Tensor, config: Config
    ) -> tuple[float, torch.dtype] | None:
        """Return the damping of `scale G` and the dtype its root is found in; None without either.

        float32 serves while the damping bounds the condition number by 1e4, float64 beyond that.
        """
        trace = self.trace(spec, factor) * spec.scale
        # All of it is divided by the outputs where the mean over them is asked for.
        damping = config.damping_rel_trace * trace + config.damping_abs * spec.scale
        if damping == 0.0 and trace == 0.0:
            return None
        # The residual of a root grows as the condition number times the rounding of its dtype.
        narrow = factor.dtype == torch.float32 and damping >= 1e-4 * trace
        return damping, torch.float32 if narrow else torch.float64

    def largest_eigenvalue(self, factor: Tensor) -> Tensor | None:
        """Bound the largest eigenvalue of a factor from above, `[*]`; None where nothing does."""
        norm: Tensor = torch.linalg.matrix_norm(factor)
        return norm

    def large_eigenvalue(self, spec: FisherSpec, factor: Tensor) -> Tensor:
        """Bound the largest eigenvalue from below, `[*]`: here by `|G|^2 / trace(G)`."""
        trace = self.diagonal(factor).sum(-1)
        # A group of zeros has the bound 0, not 0 / 0.
        return factor.square().sum((-2, -1)) / trace.clamp_min(torch.finfo(trace.dtype).tiny)

    def resolved(self, spec: FisherSpec) -> int:
        """Return how many directions of the inputs the statistics tell apart."""
        return spec.size

    def metric(self, spec: FisherSpec, root: Root) -> Tensor:
        """Return `(R^T R)^-1` `[*, D, D]`, of a root over the inputs in float64."""
        return metric_of(root.matrix())

    def probe(self, spec: FisherSpec, factor: Tensor, count: int, with_bias: bool) -> Probe | None:
        """Return what a factor makes of a few vectors, for who compares it with another.

        Args:
            spec: Of the layer.
            factor: G.
            count: Number of vectors.
            with_bias: Whether the last entry of a vector, the bias's, may be another than 0.

        Returns:
            None where the kind cannot say, or where its factor is no second moment of rows alone.
        """
        if self.sees_outputs or factor.shape != (*spec.lead, spec.size, spec.size):
            return None
        generator = torch.Generator().manual_seed(spec.size)
        drawn = torch.randn(spec.size, count, generator=generator, dtype=torch.float64)
        vectors = drawn.to(factor.device)
        if not with_bias:
            vectors[spec.layout.width :] = 0
        return Probe(vectors, factor.double() @ vectors, torch.ones_like(vectors))

    def with_bias(self, spec: FisherSpec, joined: bool) -> FisherSpec:
        """Return the record of a weight whose bias joins, or is mapped with it and left."""
        return replace(spec, has_bias=joined, is_bias_apart=not joined)

    def without_bias(self, spec: FisherSpec, moment: Tensor) -> Tensor | None:
        """Return a sum or a factor of rows without their last 1; None where nothing tells it."""
        return moment[..., : spec.layout.width, : spec.layout.width]

    # ---- the observation

    def add_rows(
        self,
        spec: FisherSpec,
        statistics: Statistics,
        samples: Sequence[Tensor],
        outputs: Tensor | None,
        geometry: Sequence[int],
        sum: Tensor,
    ) -> None:
        """Add what one forward pass has shown to a sum that is shaped like the factor.

        Args:
            spec: Of the layer.
            statistics: The rule that makes rows of the samples.
            samples: The activations that the weight multiplies, one sample for each index of
                axis 0.
            outputs: Where `sees_outputs`, the layer's outputs as rows of the rule.
            geometry: Static integers of the layer, as the rule wrote them.
            sum: Of one group or of all.
        """
        statistics.second_moment(samples, geometry, spec.has_bias, sum)

    def add_to_diagonal(self, spec: FisherSpec, sum: Tensor, value: Tensor) -> None:
        """Add a multiple of the identity, as a use that swaps inputs and outputs does."""
        for part in self.parts(spec, sum):
            self.diagonal(part).add_(value)

    # ---- the cost

    def observation_work(self, spec: FisherSpec, rows: int) -> int:
        """Count the multiply-adds that so many observed rows of one group add."""
        other = spec.layout.outputs if self.has_output_side else 0
        return rows * (spec.size**2 + other**2) // 2

    def factor_widths(self, spec: FisherSpec) -> tuple[int, ...]:
        """Return the rows of each factor over the inputs of one group, without the bias."""
        return (spec.layout.width,)

    def factor_count(self, spec: FisherSpec) -> int:
        """Return how often those factors are there."""
        return spec.layout.groups or 1

    def step_work(self, spec: FisherSpec) -> int:
        """Count the multiply-adds that the root adds to a step, at the most."""
        elements, root = prod(spec.layout.matrix), ROOTS[spec.root]
        widths = [max(self.factor_widths(spec))]
        widths += [spec.layout.outputs] if self.has_output_side else []
        return sum(root.step_work(elements, width) for width in widths)

    def refresh_work(self, spec: FisherSpec) -> int:
        """Count the multiply-adds of a refresh, about: a Cholesky factor, then w', g', momentum."""
        elements, widest = prod(spec.layout.matrix), max(self.factor_widths(spec))
        other = spec.layout.outputs if self.has_output_side else 0
        return self.root_work(spec) + 9 * elements * (widest + other) // 2

    def root_work(self, spec: FisherSpec) -> int:
        """Count the multiply-adds of the decompositions alone, of which processes take shares."""
        other = spec.layout.outputs if self.has_output_side else 0
        cubes = sum(size**3 for size in self.factor_widths(spec)) + other**3
        return self.factor_count(spec) * cubes // 3


def _by_group(numbers: Sequence[Tensor]) -> Tensor:
    """Add up what the parts of a factor give: of blocks the last alone has one for each group."""
    groups = numbers[-1].numel()
    return torch.stack([part.reshape(groups, -1).sum(-1) for part in numbers]).sum(0)


def effective_rank(parts: Sequence[Tensor], diagonals: Sequence[Tensor]) -> Tensor:
    """Return `trace(G)^2 / trace(G^2)`, `[*]`, float64; 0 for zeros.

    Args:
        parts: The matrices of a factor, or a factor's diagonal.
        diagonals: The diagonal `[*, D]` of each.
    """
    # Relative to the largest number, whose square alone may leave float64.
    largest = torch.stack([diagonal.double().amax() for diagonal in diagonals]).amax()
    unit = _or_one(largest)
    traces = [(diagonal.double() / unit).sum(-1) for diagonal in diagonals]
    groups = traces[-1].numel()
    squares = [(part.double() / unit).square().reshape(groups, -1).sum(-1) for part in parts]
    return rank_of(_by_group(traces), _by_group(squares))


def rank_of(trace: Tensor, squares: Tensor) -> Tensor:
    """Return the effective rank, of the sum of the eigenvalues and that of their squares."""
    return trace.square() / _or_one(squares)


def _or_one(divisor: Tensor) -> Tensor:
    """Return a divisor, 1 where it is 0: zeros over it stay zeros."""
    return torch.where(divisor > 0, divisor, 1.0)


def metric_of(root: Tensor) -> Tensor:
    """Return `(R^T R)^-1` of `R` `[*, D, D]`."""
    # R is inverted, not R^T R, whose condition number is the square of that of R.
    inverse: Tensor = torch.linalg.inv(root)
    return inverse @ inverse.mT


def kind_of(spec: FisherSpec) -> FisherKind:
    """Return what the kind of a local Fisher means."""
    kind: FisherKind = KINDS[spec.kind]
    return kind


def first_root(spec: FisherSpec, dtype: torch.dtype, device: torch.device) -> Root:
    """Return the root with which a Fisher layer starts, the identity."""
    root = kind_of(spec).first_root(spec, dtype, device)
    return ApartRoot(root) if spec.is_bias_apart else root
