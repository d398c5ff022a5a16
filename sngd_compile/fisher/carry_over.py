"""What one Fisher layer has seen, in the form of another: fewer rows, or a transposed use."""

from __future__ import annotations

import torch
from torch import Tensor

from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.next_roots import next_roots
from sngd_compile.fisher.roots.base import copy_root_
from sngd_compile.fisher.trust import Trust


@torch.no_grad()
def carry_over_(old: FisherLayer, new: FisherLayer) -> None:
    """Fill a layer of another form with what the present one has seen.

    Rows lose the bias's 1; those of a transposed use are averaged over the outputs, as the
    observing op does with them. What tells nothing of the other form starts anew.
    """
    kind, other = kind_of(old.spec), kind_of(new.spec)

    def carried(moment: Tensor, like: Tensor) -> Tensor | None:
        if new.layout.is_transposed != old.layout.is_transposed:
            value = like.new_tensor(kind.trace(old.spec, moment) / old.layout.width)
            total = torch.zeros_like(like)
            other.add_to_diagonal(new.spec, total, value)
            return total
        if kind is not other or new.size == old.size:
            return moment if kind is other else None
        return kind.without_bias(old.spec, moment) if new.size < old.size else None

    new.trust = Trust(old.trust.share)
    past = old.schedule
    new.schedule.restore(past.steps, past.observed_steps, past.root_step)
    moments = carried(old.sum, new.sum), carried(old.factor, new.factor)
    if moments[0] is None or moments[1] is None:
        return
    new.sum.copy_(moments[0])
    new.factor.copy_(moments[1])
    if old.joint_sum is not None:
        new.joint_sum, new.joint_rows = carried(old.joint_sum, new.sum), old.joint_rows
    for name in ("tally", "average_weight", "absorbed_rows"):
        new.get_buffer(name).copy_(old.get_buffer(name))
    # The old root may be of another size: the new one is made of the factor that was carried over.
    (found,) = next_roots([new]) if int(new.absorbed_rows) else (None,)
    if found is not None:
        copy_root_(new.root_buffers, found.root)
        new.take_dampings_(found.dampings, found.gain)


def in_form(fisher: FisherLayer, joined: bool) -> FisherLayer:
    """Return a layer like this one whose bias joins, or is left apart; this one stays as it is."""
    spec = kind_of(fisher.spec).with_bias(fisher.spec, joined)
    made = FisherLayer(fisher.name, spec, fisher.config, fisher.factor.device)
    made.to(fisher.factor.dtype)  # that of a network that was widened later
    made.output_side = fisher.output_side
    carry_over_(fisher, made)
    return made
