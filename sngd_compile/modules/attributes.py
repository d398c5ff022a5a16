"""What the attributes of a reconstructed module give: `.weight` is `w' R`, `.weight_prime` w'."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sngd_compile.errors import ModelError
from sngd_compile.fisher.reparameterise import fold_half
from sngd_compile.fisher.roots.base import Pair
from sngd_compile.fisher.transforms import are_transforms_active
from sngd_compile.modules.folded_weight import folded_weight, guarded_weight, is_in_forward
from sngd_compile.modules.writable_weight import writable
from sngd_compile.torch_private import DISTRIBUTED, is_distributing
from sngd_compile.training.intact import fisher_of, prime_of
from sngd_compile.training.refresh import LocalSite
from sngd_compile.training.sharding import PARTS, is_sharded

Names = tuple[tuple[str, str | None], ...]
"""Attribute names of the reconstructed (weight, bias) pairs of a module."""

_SURGEONS = frozenset(
    f"torch.nn.utils.{name}" for name in ("weight_norm", "parametrize", "parametrizations", "prune")
)
"""Modules whose functions replace the parameters of a layer."""


def attributes_of(names: Names) -> dict[str, property]:
    """Make the properties of a class whose pairs have these names."""
    made: dict[str, property] = {}
    for weight, bias in names:
        made[weight] = _folded(weight, bias, 0)
        made[f"{weight}_prime"] = _raw(weight, weight)
        if bias is not None:
            made[bias] = _folded(weight, bias, 1)
            made[f"{bias}_prime"] = _raw(weight, bias)
    made[DISTRIBUTED] = property(_refuse_tensor_parallel)
    return made


def _refuse_tensor_parallel(module: Any) -> None:
    """Stop `parallelize_module` before it takes the weight apart, and be missing for others."""
    if is_distributing():
        name = fisher_of(module, module.names[0][0]).name
        raise ModelError(f"{name}: parallelize_module would cut this weight. {PARTS}")
    raise AttributeError(DISTRIBUTED)


class _Held(threading.local):
    """The folded weights of forwards that run as they are, each thread its own."""

    def __init__(self) -> None:
        self.pairs: dict[nn.Module, dict[str, Tensor | None]] = {}


_held = _Held()


@contextmanager
def weights_held(module: nn.Module, names: Names) -> Iterator[None]:
    """Let the attributes of a module give one and the same fold while its own forward runs."""
    # Not on the module: it may be in the forward of another thread.
    outer = _held.pairs.get(module)
    _held.pairs[module] = folded_pairs(module, names)
    try:
        yield
    finally:
        if outer is None:
            del _held.pairs[module]
        else:
            _held.pairs[module] = outer


def folded_pairs(module: nn.Module, names: Names) -> dict[str, Tensor | None]:
    """Fold every weight of a module with its bias, for its own forward."""
    pairs: dict[str, Tensor | None] = {}
    for weight, bias in names:
        pairs[weight], folded_bias = _fold(module, weight, bias, True)
        if bias is not None:
            pairs[bias] = folded_bias
    return pairs


def _fold(module: nn.Module, weight: str, bias: str | None, in_forward: bool) -> Pair:
    """Fold a weight with its bias; in an observed forward it shows its inputs."""
    fisher = fisher_of(module, weight)
    weight_prime = prime_of(module, weight, weight)
    bias_prime = None if bias is None else prime_of(module, weight, bias)
    folded, folded_bias = fold_half(fisher, weight_prime, bias_prime)
    compiling = torch.compiler.is_compiling()
    # The subclass costs a dispatch for every call of it: only observed steps pay. A compiled
    # forward is traced once for all steps, and its op asks the gate instead.
    if in_forward and module.training and (compiling or fisher.is_observing):
        if torch.is_grad_enabled():
            folded = folded_weight(fisher, folded)
        elif not compiling:
            # Without gradients nothing is observed; a change in place would be lost all the same.
            folded = guarded_weight(fisher, folded)
    return folded, folded_bias


def _folded(weight: str, bias: str | None, index: int) -> property:
    name = (weight, bias)[index] or weight

    def read(self: Any) -> Tensor | None:
        held = None if torch.compiler.is_compiling() else _held.pairs.get(self)
        if held is not None:
            value: Tensor | None = held[name]
            return value
        # Dynamo cannot trace a look at frames, and a compiled forward performs no surgery.
        if not torch.compiler.is_compiling():
            caller = sys._getframe(1)
            if caller.f_code is nn.Module.get_parameter.__code__:
                return prime_of(self, weight, name)  # as `named_parameters` gives it
            _refuse_surgery(self, weight, str(caller.f_globals.get("__name__")))
        # What is gone raises a ModelError, here and in `fisher_of`. After an AttributeError Python
        # would ask the `__getattr__` of nn.Module, which gives the parameter, w', for w.
        parameter = prime_of(self, weight, weight)
        if is_sharded(parameter):
            return _for_fully_shard(self, (weight, bias)[index] or "")
        # In a forward a write would be lost and is refused; outside it reaches w'.
        in_forward = is_in_forward()
        folded = _fold(self, weight, bias, in_forward)[index]
        # A write is noticed by the tensor's version, which an inference tensor does not have.
        if in_forward or folded is None or folded.is_inference() or are_transforms_active():
            return folded
        return writable(LocalSite(self, weight, bias, fisher_of(self, weight)), index, folded)

    # A property is found before nn.Module looks among the parameters: so w' keeps its name and its
    # place there, and `.weight` still gives w.
    return property(read, doc=f"The folded {name}, `w' R`.")


def _refuse_surgery(module: nn.Module, weight: str, caller: str) -> None:
    """Stop `weight_norm`, `prune` and their like at the one step of theirs that a module sees.

    They read the weight, and then take it out of `_parameters` or write to it.
    """
    if caller in _SURGEONS:
        raise ModelError(
            f"{fisher_of(module, weight).name}: {caller} would put other parameters in place of "
            "this weight, which is reconstructed; nothing was changed. Call sngd.fold first, use "
            f"{caller} on the folded network, and reconstruct that"
        )


def _for_fully_shard(module: Any, name: str) -> Tensor:
    """Give `fully_shard` the part that it looks up (seen on torch 2.13); refuse anyone else."""
    caller = str(sys._getframe(2).f_globals.get("__name__", ""))
    parameter: Tensor = module._parameters[name]
    if caller.startswith("torch.distributed."):
        return parameter
    raise ModelError(
        f"{fisher_of(module, module.names[0][0]).name}: .{name} is read while its parts lie in "
        f"several processes. A forward pass may read it; .{name}_prime is the sharded w'"
    )


def _raw(weight: str, name: str) -> property:
    def read(self: nn.Module) -> Tensor:
        held = self._parameters.get(name)  # every forward reads it: no call where it is there
        return prime_of(self, weight, name) if held is None else held

    return property(read, doc=f"The parameter {name}, `w'`.")
