"""What can be set, with units, ranges and defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal, get_args

from sngd_compile.errors import ConfigError
from sngd_compile.registry import KINDS, ROOTS

OverOutputs = Literal["sum", "mean"]
Activation = Literal["auto", "relu", "tanh", "sigmoid", "elu", "gelu", "silu"]

RANK = 48
"""Columns of a sketch, where nothing else is said."""

NYSTROM = "nystrom"
"""The root of a sketch, by its name in `Config.root`: of no factor that is kept whole."""

_LARGEST = 2**62  # steps and seeds travel in int64 tensors


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configure the local Fisher layers of one network or of some of its layers.

    The defaults go with `torch.optim.SGD(lr=0.03, momentum=0.9, nesterov=True)`, with
    `clip_grad_norm_(1.0)` or without; `docs/numerics.md` measures what each of them changes.

    Args:
        refresh_every: Optimizer steps between two refreshes of the roots; integer >= 1.
        early_refreshes: Further refreshes, after these optimizer steps; increasing integers >= 1.
            The first batches say most, so the first roots are renewed soon.
        observe_every: Optimizer steps between two observed steps; integer >= 1. Step 0 is observed.
        early_observations: Further observed steps, counted from 0; increasing integers >= 0.
        ema_decay: Weight that the running average keeps per observed step; in [0, 1).
        damping_rel_trace: Damping as a fraction of the trace of the factor (for a grouped
            convolution: of the mean trace of its groups); in [0, 1]. It bounds the condition
            number of the damped factor by `1 / damping_rel_trace + 1`.
        damping_abs: Damping added to that, in the units of the factor, with the mean over
            outputs divided by their number like it; finite, >= 0. The default is what inputs of
            3e-4 have: below that a layer is silent, and its steps stay bounded.
        max_rows: Most rows taken from one forward pass, a seeded random subset without
            replacement; integer >= 1, None for all rows, or "auto" for 4 D rows. A convolution
            draws whole images, at least 16; a normalisation, a scale or slopes at least 256
            samples, an embedding bag all of them.
        seed: Seed of that subset; integer >= 0. The global generator is never touched.
        fisher: Local Fisher. "shared": `E[x~ x~^T]`, one for all outputs of a layer. "diagonal":
            its diagonal alone, D numbers, whose root costs next to nothing. "block": its diagonal
            blocks of `block_size` neighbouring inputs, D * block_size numbers. "sketch": its
            product with `rank` columns and its trace, which a wide layer with "shared" has too,
            see `rank`. "unit":
            `E[nu(a_j) x~ x~^T]` for each output a_j, O matrices, nu the Fisher information of the
            activation that follows. "kronecker": `E[x~ x~^T] (x) E[g g^T]`, g the gradient of the
            loss by the outputs, as in K-FAC. Its steps have another unit: start from a learning
            rate of 0.003 and `damping_rel_trace=1e-2`. A layer that cannot have the kind takes
            "shared", and the plan says why. One file in `sngd_compile/fisher/kinds/` adds a kind.
        over_outputs: Whether the length of a step counts the "mean" of the squared changes of a
            layer's outputs, or their "sum", as the paper's metric does. With "mean", the local
            Fisher divided by the number of outputs, all groups together, width does not matter:
            twice as many equal units train alike. With "sum" rates are the number of outputs
            times as large. "kronecker" measures the outputs itself, and does not read it.
        block_size: Inputs in one block of `fisher="block"`, which alone reads it; integer >= 1. A
            convolution's blocks are whole input channels where one fits. The bias is in the last.
        activation: What follows a layer with `fisher="unit"`: "relu", "tanh", "sigmoid", "elu"
            (alpha 1), "gelu" or "silu"; or "auto" to find it in the forward of the
            layer's module or of those around it.
        memory_budget: Memory of all Fisher layers of a network together, in bytes; integer >= 0.
            Where they would take more, the largest give way: exact factors become sketches, then
            ranks are halved down to 8, then only diagonals are kept, and the plan says so for each
            weight. With `overrides` a weight gives way while all together are above the budget of
            its own configuration. With `backend="sngd"` it holds for each frame by itself.
        step_budget: Multiply-adds that the root of a sketch may add to a step, as a fraction of
            those of the layer itself, forward and backward; a number > 0. A layer that sees few
            rows has fewer columns than `rank` in its root, at least 4; the statistics keep all.
        root: "cholesky" (triangular, exact and cheap) or "symmetric" (`G^(-1/2)` by eigh,
            the paper's root), or the same by iteration, "denman_beavers", with eigh where it does
            not converge. The trajectory is the same. But for "cholesky", they ask for an exact
            factor, however wide a layer is, while it is within `memory_budget`. "nystrom" asks for
            a sketch of `rank` columns, however narrow; kinds other than "shared" have "cholesky"
            then, and the plan says so. One file in
            `sngd_compile/fisher/roots/` adds a root.
        rank: l, columns of the sketch that a layer keeps whose D is above 4 l; integer >= 1, or
            None: every factor is exact, while it is within `memory_budget`.
        trust_radius: Largest norm that the gradient of a layer's `w'` has in a step of
            `torch.optim.SGD`; a longer one is shortened to it. Times the learning rate it is how
            far a step moves the outputs of the layer, before momentum: the root of the mean square
            over rows and outputs. A finite number > 0, or None: no bound. "kronecker", which has
            another unit, does not read it, nor `trust_share`.
        trust_share: The same as a fraction of the outputs themselves; a finite number > 0, or None.
            The smaller of both counts, and of the last layer, whose outputs no other layer has to
            follow, the larger.
        trust_rate: How fast both shrink where a layer's steps take each other back, and grow again,
            up to these values, where they agree: the logarithm of the factor for each step, at a
            gradient that points as the momentum does; a number in [0, 1]; 0: they stay.
        unit_gain: Whether each root is scaled to `|R|^2 = D`, so that white noise leaves it as
            large as it comes. For optimizers whose steps have a length of their own, as
            `torch.optim.Muon`: on `w'` their steps are as long as on `w`, see `muon`.

    Raises:
        ConfigError: A value is outside its range; the text says which, and the range.

    Source: arXiv 2412.07441. Tested by `tests/test_config.py`.
    """

    # Why these steps of refreshes and observations: decision 4; why as many rows: decision 3.
    refresh_every: int = 100
    early_refreshes: tuple[int, ...] = (1, 3, 11, 31, 61)
    observe_every: int = 20
    early_observations: tuple[int, ...] = (2, 5, 10, 30)
    ema_decay: float = 0.95
    damping_rel_trace: float = 3e-3
    damping_abs: float = 1e-7
    max_rows: int | Literal["auto"] | None = "auto"
    seed: int = 0
    fisher: str = "shared"
    over_outputs: OverOutputs = "mean"
    block_size: int = 128
    activation: Activation = "auto"
    memory_budget: int = 2**31
    step_budget: float = 0.1
    root: str = "cholesky"
    rank: int | None = RANK
    trust_radius: float | None = 0.25
    trust_share: float | None = 0.3
    trust_rate: float = 0.05
    unit_gain: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        least_of = {"refresh_every": 1, "observe_every": 1, "block_size": 1}
        least_of |= {"seed": 0, "memory_budget": 0}
        for name, least in least_of.items():
            _require(
                self,
                name,
                _is_integer(getattr(self, name), least),
                f"an integer in {_range(least)}",
            )
        for name, least in (("early_refreshes", 1), ("early_observations", 0)):
            steps = getattr(self, name)
            valid = isinstance(steps, tuple) and all(_is_integer(step, least) for step in steps)
            increasing = valid and all(a < b for a, b in pairwise(steps))
            _require(self, name, increasing, f"a tuple of increasing integers in {_range(least)}")
        decay, relative, absolute = self.ema_decay, self.damping_rel_trace, self.damping_abs
        _require(self, "ema_decay", _is_number(decay) and 0 <= decay < 1, "a number in [0, 1)")
        in_range = _is_number(relative) and 0 <= relative <= 1
        _require(self, "damping_rel_trace", in_range, "a number in [0, 1] (fraction of the trace)")
        in_range = _is_number(absolute) and 0 <= absolute < math.inf
        _require(self, "damping_abs", in_range, "a finite number >= 0")
        budget = self.step_budget
        _require(self, "step_budget", _is_number(budget) and budget > 0, "a number > 0")
        rows = self.max_rows
        valid = rows is None or rows == "auto" or _is_integer(rows, 1)
        expected = f'an integer in {_range(1)}, None (all rows) or "auto" (4 D rows)'
        _require(self, "max_rows", valid, expected)
        self._check_trust_region()
        _require(self, "unit_gain", isinstance(self.unit_gain, bool), "True or False")
        rank = self.rank is None or _is_integer(self.rank, 1)
        _require(self, "rank", rank, f"an integer in {_range(1)} or None (exact factors)")
        names_of = {"fisher": tuple(KINDS), "root": (*ROOTS, NYSTROM)}
        names_of |= {"over_outputs": get_args(OverOutputs), "activation": get_args(Activation)}
        for name, names in names_of.items():
            known = isinstance(getattr(self, name), str) and getattr(self, name) in names
            _require(self, name, known, f"one of {', '.join(names)}")

    def _check_trust_region(self) -> None:
        for name in ("trust_radius", "trust_share"):
            value = getattr(self, name)
            in_range = value is None or (_is_number(value) and 0 < value < math.inf)
            _require(self, name, in_range, "a finite number > 0, or None (no bound)")
        rate = self.trust_rate
        _require(self, "trust_rate", _is_number(rate) and 0 <= rate <= 1, "a number in [0, 1]")

    @classmethod
    def paper(cls) -> Config:
        """Return the preset of the paper's experiments.

        Average 0.995, damping 1e-4 of the trace, a refresh every 100 steps, every step observed
        from all rows, the symmetric root. Train with plain SGD without momentum, learning rate
        0.1, batches of 50. The authors' first and last layers are `shared`, as all are here, and
        their hidden layers `unit`: `paper = Config.paper()`, then
        `reconstruct(model, paper.replace(fisher="unit"), overrides={"<first layer>.*": paper})`.

        Source: arXiv 2412.07441 and the authors' published settings.
        """
        return cls(
            refresh_every=100,
            early_refreshes=(),
            observe_every=1,
            early_observations=(),
            ema_decay=0.995,
            damping_rel_trace=1e-4,
            damping_abs=0.0,
            max_rows=None,
            root="symmetric",
            rank=None,
            over_outputs="sum",
            trust_radius=None,
            trust_share=None,
        )

    @classmethod
    def robust(cls) -> Config:
        """Return settings for networks whose inputs change fast, or hardly differ.

        Damping 3e-2 of the trace, a refresh every 20 steps, every fifth step observed. Take it
        where the defaults are not stable at any rate; it is slower, see docs/tuning.md.

        Source: docs/decisions/0019-one-rate.md.
        """
        return cls(damping_rel_trace=3e-2, refresh_every=20, observe_every=5)

    @classmethod
    def muon(cls) -> Config:
        """Return settings for `torch.optim.Muon` on `w'`: roots of a gain of one, more damping.

        Muon makes the momentum of a matrix orthogonal, so that all its singular values are one. On
        `w'` that is done where inputs are white: spectral descent in natural coordinates. Leave
        what it does not step out with `overrides`. See docs/which_optimizer.md.
        """
        return cls(unit_gain=True, damping_rel_trace=0.03)

    @property
    def exact_root(self) -> str:
        """Kind of root of a factor that is kept whole."""
        return type(self).root if self.root == NYSTROM else self.root

    def replace(self, **changes: Any) -> Config:
        """Return a copy with some fields changed, checked again.

        Raises:
            ConfigError: A name is no field, or a value is outside its range.
        """
        known = {field.name for field in fields(self)}
        for name in changes:
            if name not in known:
                raise ConfigError(f"Config has no field {name!r}; its fields: {sorted(known)}")
        return replace(self, **changes)

    def is_observed(self, step: int) -> bool:
        """Say whether the forward passes of optimizer step `step` (from 0) are observed."""
        return step % self.observe_every == 0 or step in self.early_observations

    def is_refreshed(self, steps: int) -> bool:
        """Say whether a refresh follows once `steps` optimizer steps (from 1) are done."""
        return steps % self.refresh_every == 0 or steps in self.early_refreshes

    def next_event(self, steps: int) -> int:
        """Return the first number of steps after `steps` at which one of the two is so."""
        regular = [
            steps - steps % every + every for every in (self.observe_every, self.refresh_every)
        ]
        early = [step for step in (*self.early_observations, *self.early_refreshes) if step > steps]
        return min(regular + early)


def _require(config: Config, name: str, valid: bool, expected: str) -> None:
    if not valid:
        raise ConfigError(f"Config.{name} = {getattr(config, name)!r}: expected {expected}")


def _is_integer(value: object, least: int) -> bool:
    # True is an int to Python, and as a number of steps a mistake.
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _LARGEST


def _range(least: int) -> str:
    return f"[{least}, 2**62]"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
