"""A network as a whole: its small weights are folded together, its states looked at together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import nn

from sngd_compile.fisher.forward_pass import ForwardPass, Parameters
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.ties import is_in_process_group
from sngd_compile.fisher.transforms import is_seen_through
from sngd_compile.modules.partial_state import require_sound
from sngd_compile.modules.reconstructed import Reconstructed, reconstructed_modules
from sngd_compile.torch_private import (
    OUTSIDE_BACKWARD,
    backward_pass,
    forward_pre_hooks,
    is_in_pipeline,
    is_replica,
    remove_hooks,
    surround_forward,
)
from sngd_compile.training.optimizer_hooks import changes_of_owners
from sngd_compile.training.sharding import is_sharded

Member = tuple[ReferenceType[Reconstructed], str, str | None]
"""A reconstructed module, maybe the network itself, and the names of a weight and its bias."""


class Recorded(NamedTuple):
    """What a network had when its modules were looked through.

    Args:
        changes: Of the owners of sites until then.
        members: In the order of the modules.
        see_outputs: Whether any has a Fisher layer with an output side.
    """

    changes: int
    members: list[Member]
    see_outputs: bool


_recorded: WeakKeyDictionary[nn.Module, Recorded] = WeakKeyDictionary()
_running: WeakKeyDictionary[nn.Module, ForwardPass] = WeakKeyDictionary()


def watch(network: nn.Module) -> None:
    """Fold the small weights of a network together in each forward pass, and look at its states."""
    if begin_forward not in forward_pre_hooks(network):
        surround_forward(network, begin_forward, end_forward)
        network.register_load_state_dict_pre_hook(begin_loading)


def forget(network: nn.Module) -> None:
    """Undo `watch`."""
    remove_hooks(network, begin_loading)
    _recorded.pop(network, None)


def begin_forward(network: nn.Module, inputs: Any) -> None:
    """Fold the weights that the last forward pass folded one by one."""
    # A compiler sees each fold where it is, and joins them itself.
    if is_seen_through():
        return
    if is_replica(network):
        return  # replicas in threads share the Fisher layers
    # Data parallel wrappers send a gradient as soon as it is there: one node for all would make
    # them wait for the end of the backward pass.
    folds_together, recorded = not is_in_process_group(), _recorded_of(network)
    if not (folds_together or recorded.see_outputs):
        return
    members = _present(recorded.members)
    # A pipeline may put the gradients of weights off until other micro-batches have passed.
    if recorded.see_outputs and not is_in_pipeline():
        _forget_abandoned_(members)
    if not folds_together:
        return
    before = members[0][0].ties.forward_pass if members else None
    if before is not None and before.is_open:
        return  # it is a part of a network whose forward pass has begun
    _running[network] = ForwardPass(members)


def end_forward(network: nn.Module, inputs: Any, output: Any) -> None:
    """Forget what was folded."""
    if torch.compiler.is_compiling():
        return
    running = _running.pop(network, None)
    if running is not None:
        running.close()


def begin_loading(network: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Refuse a state of which a part is damaged, before any module takes its own part."""
    for name, module in reconstructed_modules(network).items():
        for site in module.local_sites():
            require_sound(site, state, f"{prefix}{name}." if name else prefix)


def _forget_abandoned_(members: Iterable[Parameters]) -> None:
    """Forget gradients at outputs of a step that was given up before the optimizer took it.

    What the next step adds up would be multiplied by the samples of both. The gradients of the
    weights tell: those of the passes before this one are in them, or nothing was accumulated.
    """
    for fisher, weight, _ in members:
        side = fisher.output_side
        if side is None or not fisher.schedule.observing:
            continue
        # A pass inside a backward pass repeats one. Sharded gradients may wait elsewhere.
        if backward_pass() != OUTSIDE_BACKWARD or is_sharded(weight):
            continue
        if weight.grad is None:
            side.discard_step_()
        else:
            side.keep_step_(weight.grad.any())


def _recorded_of(network: nn.Module) -> Recorded:
    """Look through the modules of a network, once as long as no owner of sites changes."""
    changes = changes_of_owners()
    known = _recorded.get(network)
    if known is None or known.changes != changes:
        modules = reconstructed_modules(network).values()
        layers = [m._modules.get(f"{name}_fisher") for m in modules for name, _ in m.names]
        known = _recorded[network] = Recorded(
            changes,
            [(ref(module), *names) for module in modules for names in module.names],
            any(getattr(layer, "output_side", None) is not None for layer in layers),
        )
    return known


def _present(members: Iterable[Member]) -> list[Parameters]:
    """List the weights that lie here as a whole, each Fisher layer once."""
    found: dict[FisherLayer, Parameters] = {}
    for reference, weight_name, bias_name in members:
        module = reference()
        if module is None:
            continue
        # Read anew each time: parameters are replaced, and other code may take them away.
        weight = module._parameters.get(weight_name)
        bias = None if bias_name is None else module._parameters.get(bias_name)
        fisher = module._modules.get(f"{weight_name}_fisher")
        is_gone = weight is None or (bias_name is not None and bias is None)
        if weight is None or is_gone or not isinstance(fisher, FisherLayer):
            continue
        if type(weight) is not nn.Parameter and is_sharded(weight):
            continue
        found[fisher] = fisher, weight, bias
    return list(found.values())
