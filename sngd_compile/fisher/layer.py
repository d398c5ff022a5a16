"""The local Fisher layer: the statistics of one weight's inputs, and the root made from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from sngd_compile.config import TWO_SIDED, Config
from sngd_compile.fisher.average import absorb_
from sngd_compile.fisher.blocks import factor_shape, head_and_tail
from sngd_compile.fisher.buffers import WideBuffers
from sngd_compile.fisher.copies import deep_copy, expect_change
from sngd_compile.fisher.damping import Damped, keep_whole, share
from sngd_compile.fisher.output_side import OutputSide
from sngd_compile.fisher.roots.decompose import Root, TwoSidedRoot, copy_root_
from sngd_compile.fisher.roots.eigen import EigenRoot
from sngd_compile.fisher.roots.new_root import identity_root
from sngd_compile.fisher.schedule import Schedule
from sngd_compile.fisher.weight_map import RootForm
from sngd_compile.layout import Layout

ROWS, REJECTED = 0, 1  # entries of FisherLayer.tally


class FisherLayer(WideBuffers):
    """Hold the local Fisher of one weight (and its bias) and the root of its inverse.

    The reconstructed network reads only the root; `observe_` writes `sum` and `tally`; a refresh
    moves them into `factor` and renews the root. Nothing here requires a gradient.

    Args:
        name: Qualified name of the weight, for messages.
        layout: How the weight is laid out as matrices `[*, O, K]`.
        has_bias: Whether the last coordinate of a row is the bias's 1.
        kind: "shared", a full matrix; "diagonal"; "block", diagonal blocks; "unit", a full
            matrix for each output; "softmax", one over the weights of all outputs; or "kronecker"
            and "eigen", two full matrices.
        config: Damping, schedule, kind of root.
        dtype: Dtype of the statistics and of the root; float32 or float64.
        device: Where the buffers live.
        blocks: Of a block kind, the size of each block, bias included.
        activation: Of a unit or softmax kind, the name of what follows the layer.
        root_reason: Which root `root="auto"` took, and why; "" where the root was given.

    Attributes:
        kind: Local Fisher, see `Config.fisher`.
        size: D, weights of one output, bias included.
        groups: Local Fishers side by side; None for one without a groups axis.
        factor: G as estimated, without damping, `[D, D]` or `[groups, D, D]`, in the order of
            `weight.flatten(1)`, the bias last; of a diagonal kind `[D]` or `[groups, D]`; of a
            block kind flat, `[L]` or `[groups, L]`: the blocks, one after the other, each row by
            row; of a unit kind `[groups * O, D, D]`; of a softmax kind `[O * D, O * D]`, one output
            after the other. Zero until the first refresh.
        unmatched: Where the weight was last used in a way that no rule understands, or "".
        scale: Multiple of the factor that is damped and inverted, see `Config.over_outputs`.
        output_side: Of a kronecker or eigen kind, what is known of the gradients at its outputs.
        warm_roots: Roots since it was made or loaded that were a step from the one before.
        fresh_roots: Roots since then that were found anew.

    Source: arXiv 2412.07441; docs/method.md. Laws 5, 6, 7 test the factor and the root.
    """

    is_part_of_forward = False  # a capture of the module that holds it does not see it
    sum: Tensor
    tally: Tensor
    factor: Tensor
    average_weight: Tensor
    absorbed_rows: Tensor
    absolute_damping: Tensor

    def __init__(  # noqa: PLR0913 - what there is to know of a layer
        self,
        name: str,
        layout: Layout,
        has_bias: bool,
        kind: str,
        config: Config,
        dtype: torch.dtype,
        device: torch.device,
        *,
        blocks: tuple[int, ...] = (),
        activation: str = "",
        root_reason: str = "",
    ) -> None:
        """Start with the identity as root and no rows seen."""
        super().__init__()
        self.name, self.layout, self.has_bias = name, layout, has_bias
        self.size, self.groups = layout.width + has_bias, layout.groups
        self.config, self.kind, self.unmatched = config, kind, ""
        self.blocks, self.activation, self.root_reason = blocks, activation, root_reason
        shape = factor_shape(kind, layout, self.size, blocks)
        for buffer in ("sum", "factor"):
            self.register_buffer(buffer, torch.zeros(shape, dtype=dtype, device=device))
        self.register_buffer("tally", torch.zeros(2, dtype=torch.int64, device=device))
        self.register_buffer("absorbed_rows", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("average_weight", torch.zeros((), dtype=torch.float64, device=device))
        # With a zero factor, a damping of 1 is what makes the identity the root.
        self.register_buffer("absolute_damping", torch.ones((), dtype=torch.float64, device=device))
        is_two_sided = kind in TWO_SIDED
        self.output_side: OutputSide | None = OutputSide(layout, device) if is_two_sided else None
        measures_outputs = is_two_sided or kind == "softmax"
        is_mean = config.over_outputs == "mean" and not measures_outputs
        self.scale = 1.0 / layout.all_outputs if is_mean else 1.0
        self.root_form = RootForm(kind, config.root, blocks, layout)
        self.root_buffers: Root = self.new_root(dtype, device)
        self.schedule = Schedule(config, self.size)
        self.warned: set[str] = set()
        self.warm_roots = self.fresh_roots = 0

    @property
    def damping(self) -> float:
        """Absolute damping inside the present root, in the units of the factor."""
        return float(self.absolute_damping)

    @property
    def root(self) -> Tensor:
        """R with `R^T R = (scale G + damping)^-1`, shaped like `factor`; eigen: the rotation."""
        return self.root_buffers.matrix()

    @property
    def output_root(self) -> Tensor | None:
        """R_B with `R_B^T R_B = (B + damping)^-1`, `[*, O, O]`; eigen: the rotation; or None."""
        root = self.root_buffers
        return root.output_matrix() if isinstance(root, TwoSidedRoot) else None

    @property
    def gain(self) -> Tensor | None:
        """S of an eigen kind, `[*, O, D]`: `W = output_root^T (S o W') root`; None of others."""
        root = self.root_buffers
        return root.gain.clone() if isinstance(root, EigenRoot) else None

    @property
    def rows_seen(self) -> int:
        """Rows observed so far, those since the last refresh included."""
        return int(self.absorbed_rows + self.tally[ROWS])

    @property
    def unseen(self) -> str:
        """What has never been observed, "input" or "output gradient"; "" where nothing lacks."""
        if not self.rows_seen:
            return "input"
        is_blind = self.output_side is not None and self.output_side.is_empty
        return "output gradient" if is_blind else ""

    @torch.no_grad()
    def absorb_(self) -> bool:
        """Move the sums into the averages over time; return False where no row was seen.

        The past counts `ema_decay^(observed steps)`.
        """
        rows = int(self.tally[ROWS])
        kept = self.config.ema_decay ** max(1, self.schedule.observed_steps)
        if self.output_side is not None:
            self.output_side.absorb_(kept)
        if rows == 0:
            self.schedule.observed_steps = 0
            return False
        absorb_(self.factor, self.average_weight, self.sum, rows, kept)
        self.absorbed_rows.add_(rows)
        self.sum.zero_()
        self.tally[ROWS].zero_()
        self.schedule.observed_steps = 0
        return True

    @torch.no_grad()
    def damped(self) -> tuple[Damped, ...]:
        """Return `scale G + damping` and the damping; () for a factor of zeros, undamped.

        float32 serves while the damping bounds the condition number by 1e4, float64 beyond that.
        A kronecker kind has two, of its input and of its output side, in float64; an eigen kind
        too, not damped, and the damping of their product.
        """
        if self.output_side is not None:
            damp = keep_whole if self.kind == "eigen" else share
            return damp(self.factor * self.scale, self.output_side.factor, self.config)
        trace = _trace([self._diagonal(part) for part in self._parts(self.factor)]) * self.scale
        damping = self.config.damping_rel_trace * trace + self.config.damping_abs
        if damping == 0.0 and trace == 0.0:
            return ()
        narrow = self.factor.dtype == torch.float32 and damping >= 1e-4 * trace
        dtype = torch.float32 if narrow else torch.float64
        parts = self._parts(torch.mul(self.factor.to(dtype), self.scale))
        for part in parts:
            self._diagonal(part).add_(damping)
        return tuple((part, damping) for part in parts)

    def take_dampings_(self, dampings: Sequence[float]) -> None:
        """Remember the damping inside a new root, with two sides for both."""
        self.absolute_damping.fill_(dampings[0])
        if self.output_side is not None:
            self.output_side.absolute_damping.fill_(dampings[1])

    def close_step_(self, valid: bool = True) -> None:
        """Count what the step that ends has shown; forget it where it was skipped."""
        if self.output_side is not None and valid:
            self.output_side.close_step_()
        elif self.output_side is not None:
            self.output_side.discard_step_()

    def new_root(self, dtype: torch.dtype, device: torch.device | None = None) -> Root:
        """Return an identity root of this layer's kind and shape, on its device or another."""
        where = device or self.factor.device
        form = (self.kind, self.config, self.layout, self.has_bias, self.blocks)
        return identity_root(*form, dtype, where)

    def _parts(self, factor: Tensor) -> list[Tensor]:
        """Return the factor as what is decomposed one by one."""
        return [*head_and_tail(factor, self.blocks)] if self.kind == "block" else [factor]

    def _diagonal(self, factor: Tensor) -> Tensor:
        return factor if self.kind == "diagonal" else factor.diagonal(dim1=-2, dim2=-1)

    def forget_(self) -> None:
        """Return to the state before the first observation; the caller has moved the weights."""
        for name in ("sum", "tally", "factor", "average_weight", "absorbed_rows"):
            self.get_buffer(name).zero_()
        self.absolute_damping.fill_(1.0)
        if self.output_side is not None:
            self.output_side.forget_()
        copy_root_(self.root_buffers, self.new_root(self.factor.dtype))
        self.schedule.restore(0, 0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy it, and remember of what."""
        return deep_copy(self, memo)

    def get_extra_state(self) -> Tensor:
        """Return the schedule, so that a resumed run refreshes when the first would have."""
        return self.schedule.state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the schedule."""
        self.schedule.restore(*(int(value) for value in state))
        expect_change(self)

    def extra_repr(self) -> str:
        """Show what kind of layer it is and whether it has seen anything."""
        groups = "" if self.groups is None else f"groups={self.groups}, "
        blocks = f"blocks={len(self.blocks)}, " if self.blocks else ""
        return f"{self.kind}, {groups}{blocks}D={self.size}, rows_seen={self.rows_seen}"


def _trace(diagonals: Sequence[Tensor]) -> float:
    """Return the trace of a factor from the diagonals of its parts, for groups their mean."""
    groups = diagonals[-1][..., 0].numel()
    return sum(float(diagonal.sum(-1).double().sum()) for diagonal in diagonals) / groups
