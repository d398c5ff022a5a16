"""The local Fisher layer: the statistics of one weight's inputs, and the root made from them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Self

import torch
from torch import Tensor, nn

from sngd_compile.config import Config
from sngd_compile.errors import ModelError
from sngd_compile.fisher.average import absorb_
from sngd_compile.fisher.buffers import REMAINDERS, WideBuffers
from sngd_compile.fisher.kinds.base import Damped, first_root, kind_of
from sngd_compile.fisher.output_side import OutputSide
from sngd_compile.fisher.roots.base import Root, copy_root_
from sngd_compile.fisher.schedule import ALL_ROWS, Schedule
from sngd_compile.fisher.spec import COUNTS, FisherSpec, Record, mismatch, packed, unpacked
from sngd_compile.fisher.ties import Ties, is_in_process_group
from sngd_compile.fisher.trust import Trust
from sngd_compile.layout import Layout
from sngd_compile.torch_private import EXTRA_STATE

ROWS, REJECTED, OUTLIER = range(3)  # entries of FisherLayer.tally


class FisherLayer(WideBuffers):
    """Hold the local Fisher of one weight (and its bias) and the root of its inverse.

    The reconstructed network reads only the root; `observe_` writes `sum` and `tally`; a refresh
    moves them into `factor` and renews the root. Nothing here requires a gradient.

    Args:
        name: Qualified name of the weight, for messages.
        spec: What the local Fisher is but for its numbers.
        config: Strength of the damping, running average, schedule.
        device: Where the buffers live.

    Attributes:
        spec: As given.
        bias_name: Attribute name of the bias that is mapped with the weight, or None.
        factor: G as estimated, without damping, `[D, D]` or `[groups, D, D]`, in the order of
            `weight.flatten(1)`, the bias last; of a diagonal kind `[D]` or `[groups, D]`; of a
            block kind flat, `[L]` or `[groups, L]`: the blocks, one after the other, each row by
            row; of a unit kind `[groups * O, D, D]`; of a sketch `[D + 1, l]` or
            `[groups, D + 1, l]`: G times the columns of `sngd_kernels.sketch_basis`, and behind
            them the trace of G and zeros. Zero until the first refresh.
        joint_sum: The part of `sum` that every process which trains the weight holds, as it was
            added up or loaded; None where that is nothing.
        joint_rows: The rows in that, or None.
        is_last: Whether its outputs are those of the network, so that no other layer has to follow
            them: `Config.trust_share` is for the others.
        unmatched: Where the weight was last used in a way that no rule understands, or "".
        trust: How much of its trust region it may use.
        gain: What `Config.unit_gain` makes the metric of the present root larger by.
        outlier: How many times as large as usual, in their squares, the inputs between the last two
            refreshes were, where that was bounded; 0.0 elsewhere.
        output_side: Of a kronecker kind, what is known of the gradients at its outputs.
        weight_remainder: What the last move of a `w'` of half precision rounded away.
        bias_remainder: The same of `b'`.
        ties: What it knows of other layers in this process.

    Source: arXiv 2412.07441; docs/method.md. Laws 5, 6, 7 test the factor and the root.
    """

    is_part_of_forward = False  # a capture of the module that holds it does not see it
    sum: Tensor
    tally: Tensor
    joint_sum: Tensor | None
    joint_rows: Tensor | None
    factor: Tensor
    average_weight: Tensor
    absorbed_rows: Tensor
    absolute_damping: Tensor
    weight_remainder: Tensor | None
    bias_remainder: Tensor | None

    def __init__(self, name: str, spec: FisherSpec, config: Config, device: torch.device) -> None:
        """Start with the identity as root and no rows seen."""
        super().__init__()
        self.name, self.spec, self.config = name, spec, config
        self.bias_name: str | None = None
        shape = kind_of(spec).factor_shape(spec)
        for buffer in ("sum", "factor"):
            self.register_buffer(buffer, torch.zeros(shape, dtype=spec.dtype, device=device))
        self.register_buffer("tally", torch.zeros(3, dtype=torch.int64, device=device))
        for buffer in ("joint_sum", "joint_rows"):  # a file needs none: all of `sum` is joint then
            self.register_buffer(buffer, None, persistent=False)
        self.register_buffer("absorbed_rows", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("average_weight", torch.zeros((), dtype=torch.float64, device=device))
        # With a zero factor, a damping of 1 is what makes the identity the root.
        self.register_buffer("absolute_damping", torch.ones((), dtype=torch.float64, device=device))
        for buffer in REMAINDERS:  # whoever holds the parameters fills them in
            self.register_buffer(buffer, None)
        self.output_side: OutputSide | None = kind_of(spec).output_side(spec, device)
        self.root_buffers: Root = self.new_root(spec.dtype, device)
        self.schedule = Schedule(config, spec.size)
        self.is_last = False
        self.trust = Trust()
        self.gain = 1.0
        self.unmatched = ""
        self.outlier = 0.0
        self.warned: set[str] = set()
        self.ties = Ties()

    @property
    def kind(self) -> str:
        """Local Fisher, see `Config.fisher`."""
        return self.spec.kind

    @property
    def layout(self) -> Layout:
        """How the weight is laid out as matrices `[*, O, K]`."""
        return self.spec.layout

    @property
    def has_bias(self) -> bool:
        """Whether the last coordinate of a row is the bias's 1."""
        return self.spec.has_bias

    @property
    def size(self) -> int:
        """D, weights of one output, bias included."""
        return self.spec.size

    @property
    def groups(self) -> int | None:
        """Local Fishers side by side; None for one without a groups axis."""
        return self.spec.layout.groups

    @property
    def scale(self) -> float:
        """Multiple of the factor in the metric: `Config.over_outputs`, `Config.unit_gain`."""
        return self.spec.scale * self.gain

    @property
    def damping(self) -> float:
        """Absolute damping inside the present root, in the units of the factor."""
        return float(self.absolute_damping)

    @property
    def root(self) -> Tensor:
        """R with `R^T R = (scale G + damping)^-1`, shaped like G, of a sketch too."""
        return self.root_buffers.matrix()

    @torch.no_grad()
    def metric(self) -> Tensor:
        """Return `(R^T R)^-1`, the metric in which steps are taken, written out in float64.

        It is `scale G + damping` as far as the kind keeps G: the diagonal of a diagonal kind, the
        blocks of a block kind; of a sketch what stands for G, see docs/method.md. Of a kronecker
        kind it is that over the inputs. For tests and inspection: no step makes it.

        Returns:
            `[D, D]` or `[groups, D, D]`, the bias last; of a unit kind `[groups * O, D, D]`.
        """
        root = self.new_root(torch.float64)
        copy_root_(root, self.root_buffers)
        return kind_of(self.spec).metric(self.spec, root)

    @property
    def output_root(self) -> Tensor | None:
        """R_B with `R_B^T R_B = (B + damping)^-1`, `[*, O, O]`; None without an output side."""
        return self.root_buffers.output_matrix()

    @property
    def rows_seen(self) -> int:
        """Rows observed so far, those since the last refresh included."""
        return int(self.absorbed_rows + self.tally[ROWS])

    @property
    def rows_per_step(self) -> float:
        """Rows that one process has observed in an optimizer step, on average over such steps.

        The rows of all passes of a step count, at most `Config.max_rows` of each; 0.0 before the
        first.
        """
        group = self.ties.process_group
        processes = 1 if group is None else torch.distributed.get_world_size(group)
        return self.rows_seen / (max(1, self.schedule.observed_in_all) * processes)

    @property
    def may_miss_rows(self) -> bool:
        """Whether as many rows were observed in a step as `Config.max_rows` draws of a pass."""
        most_rows = self.schedule.most_rows
        return most_rows != ALL_ROWS and self.rows_per_step >= most_rows

    @property
    def is_observing(self) -> bool:
        """Whether what a forward pass shows now counts: not of a weight that is frozen by now.

        No optimizer would count its steps, so its first one would be observed for ever.
        """
        if not self.schedule.observing:
            return False
        weight = self.ties.weight()
        # What `functional_call` puts in its place, as under `vmap`, may not say what it is part of.
        return not isinstance(weight, nn.Parameter) or weight.requires_grad

    @property
    def unseen(self) -> str:
        """What has never been observed, "input" or "output gradient"; "" where nothing lacks."""
        if not self.rows_seen:
            return "input"
        is_blind = self.output_side is not None and self.output_side.is_empty
        return "output gradient" if is_blind else ""

    @torch.no_grad()
    def absorb_(self) -> bool:
        """Move the sums into the running averages; return False where no row entered.

        The past counts `ema_decay^(observed steps)`. A sum of rows that has left its dtype is one
        pass more that is rejected.
        """
        rows = int(self.tally[ROWS])
        # One mean enters for all steps observed since the last time, so the past is discounted
        # once for each of them, however often roots are renewed.
        kept = self.config.ema_decay ** max(1, self.schedule.observed_steps)
        if self.output_side is not None:
            self.output_side.absorb_(kept)
        if rows == 0:
            self.schedule.observed_steps = 0
            return False
        kind, spec = kind_of(self.spec), self.spec
        average = (self.factor, self.average_weight, self.sum, rows, kept)
        ratio = absorb_(*average, lambda g: kind.trace(spec, g), self.tally[OUTLIER])
        is_absorbed = isfinite(ratio)
        self.outlier = ratio if is_absorbed else 0.0
        self.absorbed_rows.add_(rows if is_absorbed else 0)
        self.tally[REJECTED].add_(not is_absorbed)
        self.sum.zero_()
        self.tally[ROWS].zero_()
        self.joint_sum = self.joint_rows = None
        self.schedule.observed_steps = 0
        return is_absorbed

    def own_part(self) -> tuple[Tensor, Tensor]:
        """Return what this process alone has observed: a sum, and the number of its rows."""
        sum, rows = self.sum, self.tally[ROWS]
        if self.joint_sum is not None and self.joint_rows is not None:
            return sum - self.joint_sum, rows - self.joint_rows
        return sum, rows

    def take_joint_(self, sum: Tensor, rows: Tensor) -> None:
        """Hold the own parts of all processes, added up, in the place of this one's."""
        if self.joint_sum is None or self.joint_rows is None:
            self.joint_sum, self.joint_rows = sum.clone(), rows.clone()
        else:
            self.joint_sum.add_(sum)
            self.joint_rows.add_(rows)
        self.sum.copy_(self.joint_sum)
        self.tally[ROWS].copy_(self.joint_rows)

    def share_all_(self) -> None:
        """Note that what this layer holds every process holds, as after loading one file."""
        self.joint_sum = self.joint_rows = None
        if is_in_process_group() and not self.tally.is_meta and bool(self.tally[ROWS]):
            self.joint_sum, self.joint_rows = self.sum.clone(), self.tally[ROWS].clone()

    @torch.no_grad()
    def damped(self) -> tuple[Damped, ...]:
        """Return what is decomposed, with the damping in it; () for a factor of zeros, undamped."""
        spec, kind = self.spec, kind_of(self.spec)
        factor = kind.within_budget(spec, self.factor, self.rows_per_step, self.config)
        return kind.damped(spec, factor, self.output_side, self.config)

    def take_dampings_(self, dampings: Sequence[float], gain: float) -> None:
        """Remember the damping inside a new root, with two sides for both, and its gain."""
        self.gain = gain
        self.absolute_damping.fill_(dampings[0])
        if self.output_side is not None:
            self.output_side.absolute_damping.fill_(dampings[1])

    def close_step_(self, valid: bool = True) -> None:
        """Count what the step that ends has shown; forget it where it was skipped."""
        if self.output_side is not None and valid:
            self.output_side.close_step_()
        elif self.output_side is not None:
            self.output_side.discard_step_()

    def note_change_(self) -> None:
        """Note that `w'` became another as it should: it was written to, or has a new root."""
        self.ties.expect_change()
        self.trust.prime_norm = None

    def new_root(self, dtype: torch.dtype, device: torch.device | None = None) -> Root:
        """Return an identity root of this layer's kind and shape, on its device or another."""
        return first_root(self.spec, dtype, device or self.factor.device)

    def forget_statistics_(self) -> None:
        """Forget what was observed, on both sides; the root over the inputs stays."""
        for name in ("sum", "tally", "factor", "average_weight", "absorbed_rows"):
            self.get_buffer(name).zero_()
        self.joint_sum = self.joint_rows = None
        if self.output_side is not None:
            self.output_side.forget_()

    @property
    def remainders(self) -> tuple[Tensor | None, Tensor | None]:
        """What is kept of `w'` and of `b'` beside the parameters."""
        return self.weight_remainder, self.bias_remainder

    def forget_remainders_(self) -> None:
        """Take the parameters for all that there is of `w'` and `b'`."""
        for remainder in self.remainders:
            if remainder is not None:
                remainder.zero_()

    def forget_(self) -> None:
        """Return to the state before the first observation; the caller has moved the weights."""
        self.forget_statistics_()
        self.forget_remainders_()
        self.trust, self.gain = Trust(), 1.0
        self.absolute_damping.fill_(1.0)
        copy_root_(self.root_buffers, self.new_root(self.factor.dtype))
        self.schedule.restore(0, 0)

    def begin_anew_(self, device: torch.device) -> None:
        """Return to the state before the first observation, on another device."""
        self.to_empty(device=device)
        self.forget_()

    def become_(self, other: FisherLayer) -> None:
        """Take over the record, the statistics and the root of another; the caller moves w'.

        Whoever holds this layer, as all modules that share its weight do, has the new form.
        """
        self.spec, self.root_buffers, self.gain = other.spec, other.root_buffers, other.gain
        kept = {name: self._buffers[name] for name in REMAINDERS}
        self._buffers.update(other._buffers, **kept)
        now = self.schedule
        counts = now.steps, now.observed_steps, other.schedule.root_step
        now.configure_(self.config, self.size, *counts)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy it, and remember of what."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo), ties=Ties.of_copy(self))
        self.ties.copies.add(copied)
        return copied

    def require_sound(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Look at all tensors of a checkpoint before any is taken, of the weight neither.

        Raises:
            ModelError: A tensor has another shape, or a number that is not finite, or the counts of
                steps are none.
        """
        # A layer half loaded would have a root that belongs to another factor, or to another w'.
        for key, own in self.state_dict().items():
            given = state_dict.get(prefix + key)
            if given is None or (fault := mismatch(given, own, key == EXTRA_STATE)) is None:
                continue
            raise ModelError(
                f"{self.name}: {key} of the checkpoint {fault}, so nothing of its local Fisher "
                "is loaded; the file is damaged, or of another network"
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take a checkpoint of whichever API: the one way in, which checks it first."""
        self.require_sound(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.share_all_()

    def get_extra_state(self) -> Tensor:
        """Return the schedule, so that a resumed run refreshes when the first would have.

        And what this layer is, by which `fold_checkpoint` folds without a network.
        """
        return packed(
            self.schedule.counts, Record(self.spec, self.bias_name, self.trust, self.gain)
        )

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the schedule."""
        self.schedule.restore(*state[:COUNTS].tolist())
        record = unpacked(state)
        self.trust, self.gain = record.trust, record.gain
        self.ties.expect_load()

    def extra_repr(self) -> str:
        """Show what kind of layer it is and whether it has seen anything."""
        groups = "" if self.groups is None else f"groups={self.groups}, "
        blocks = f"blocks={len(self.spec.blocks)}, " if self.spec.blocks else ""
        return f"{self.kind}, {groups}{blocks}D={self.size}, rows_seen={self.rows_seen}"
