"""Reconstructed modules: the original class with a compiled forward and folded attributes."""

from __future__ import annotations

import copyreg
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn

from sngd_compile.errors import ModelError
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.modules.attributes import Names, attributes_of, weights_held
from sngd_compile.modules.composites import members_of
from sngd_compile.modules.partial_state import fit_remainders_in_, keep_together_, take_form_
from sngd_compile.modules.portable_state import (
    put_in_state_,
    refuse_prime,
    take_from_state_,
    unfold_in_state_,
)
from sngd_compile.modules.program import Program
from sngd_compile.modules.rematching import match_again
from sngd_compile.modules.writable_weight import comes_back
from sngd_compile.passes import PASSES, run_passes
from sngd_compile.passes.runner import logger
from sngd_compile.plan.matching import RESERVED_NAMES
from sngd_compile.plan.records import ModulePlan, Plan
from sngd_compile.plan.report import graph_report, plan_report
from sngd_compile.progress import tracked
from sngd_compile.rules import runs_known_forward
from sngd_compile.torch_private import trace_artifact
from sngd_compile.training.averaged_models import install_averaged_model_hook
from sngd_compile.training.data_parallel_entry import install_data_parallel_hook
from sngd_compile.training.intact import check_intact, fisher_of
from sngd_compile.training.optimizer_hooks import (
    name_of_layer,
    register_copy,
    register_owner,
    release_owner,
    reset_,
)
from sngd_compile.training.refresh import LocalSite
from sngd_compile.training.remainders import fit_remainders_
from sngd_compile.training.sharding import check_sharding, is_sharded


class OwnState(NamedTuple):
    """The state of a module whose class makes one of its own, from which it builds a plain module.

    Args:
        given: What the class made.
        parameters: W' and b' by name.
        layers: The Fisher layers by name.
    """

    given: Any
    parameters: Mapping[str, nn.Parameter | None]
    layers: Mapping[str, FisherLayer]


class Reconstructed(nn.Module):
    """Mixed into the class of a reconstructed module.

    The parameter `weight` holds `w'` and keeps its name, place and shape; the attribute `.weight`
    gives the folded `w' R`, differentiable, to whoever else reads it; `.weight_prime` gives `w'`.
    Assigning a parameter to `.weight` sets an ordinary weight, as loading a plain checkpoint does.
    """

    original_class: type[nn.Module]
    names: Names
    program: Program

    @property
    def observing(self) -> bool:
        """Whether a forward pass now is part of training."""
        return self.training and torch.is_grad_enabled()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the reconstructed graph; without one the module's own forward, on folded weights.

        Raises:
            ModelError: Other code took a parameter or a Fisher layer away, or reshaped it.
        """
        run = self.program.forward or Reconstructed.run_own
        # A compiler cannot go on in the middle of a `try` after a graph break.
        if torch.compiler.is_compiling():
            return run(self, *args, **kwargs)
        try:
            return run(self, *args, **kwargs)
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            # Looked at only now, so that a forward pass that succeeds costs no more.
            if not isinstance(error, ModelError):
                check_intact(self, self.names)
            raise

    def run_own(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward, on folded weights."""
        # A compiler finds common subexpressions itself, and takes no attribute that comes and goes.
        if torch.compiler.is_compiling() or not runs_known_forward(self.original_class):
            return super().forward(*args, **kwargs)
        # Read once: a weight and its bias are folded together. A forward of the user's own reads
        # them each time, since checkpointing may repeat a part of it.
        with weights_held(self, self.names):
            return super().forward(*args, **kwargs)

    def local_sites(self) -> list[LocalSite]:
        """Return one record per reconstructed weight; a `ModelError` where one is damaged."""
        check_intact(self, self.names)
        pairs = self.names
        return [LocalSite(self, name, bias, fisher_of(self, name)) for name, bias in pairs]

    def __init_subclass__(cls) -> None:
        """Keep the original class's own hook out: the class made here is no further subclass."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it, and capture the forward again if what it became depends on that."""
        if name in RESERVED_NAMES:
            raise ModelError(
                f"a reconstructed module needs its attribute {name!r}: choose another name"
            )
        if comes_back(value, self, name):
            return  # what was written has reached w'
        if isinstance(value, nn.Parameter) and any(name in pair for pair in self.names):
            # A class may read all its weights where one is set, as recurrent ones do, and while a
            # state is assigned one by one some are still on another device.
            self.register_parameter(name, value)
            return
        # A graph reads its buffers where they are: one tensor for another changes nothing in it.
        held = self.__dict__.get("_buffers") or {}
        stays = isinstance(held.get(name), Tensor) and isinstance(value, Tensor)
        super().__setattr__(name, value)
        if not stays and name not in (self.__dict__.get("_parameters") or {}):
            _capture_if_read(self, name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or cast, and capture the forward again, which may ask for dtype or device."""
        before = [(p.dtype, p.device) for p in self._parameters.values() if p is not None]
        result = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = [(p.dtype, p.device) for p in self._parameters.values() if p is not None]
        if before != after:
            self.__dict__["program"] = _program_of(self)
            for site in self.local_sites():
                site.fisher.note_change_()
                fit_remainders_(site.fisher, site.weight, site.bias)
        return result

    def __delattr__(self, name: str) -> None:
        """Refuse to lose a reconstructed weight, as parametrizations would have it."""
        if any(name in pair for pair in self.names):
            raise ModelError(f"{name!r} is reconstructed: fold first, then take it away")
        super().__delattr__(name)
        _capture_if_read(self, name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Take an ordinary parameter: the root of its weight returns to the identity."""
        known = self._parameters.get(name)
        if is_sharded(param) or is_sharded(known):  # fully_shard swaps parts and the whole
            check_sharding(f"{self.original_class.__name__}.{name}", param)
            self._parameters[name] = param
            return
        site = next((s for s in self.local_sites() if name in (s.weight_name, s.bias_name)), None)
        if site is None or not isinstance(param, nn.Parameter | None):
            super().register_parameter(name, param)
        elif param is not known:
            _refuse_tie(site, name, param)
            if param is None or known is None or param.shape != known.shape:
                raise ModelError(f"{name!r} is reconstructed: fold first, then reshape it")
            reset_(site)
            # `nn.Module` would look at the attribute, and fold halves of which one may be on meta.
            self._parameters[name] = param
            fit_remainders_(site.fisher, site.weight, site.bias)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Name the original class instead of the generated one."""
        # The generated class has no name under which another process could import it.
        function, arguments, *rest = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        if function is not copyreg.__newobj__:  # type: ignore[attr-defined]
            raise ModelError(
                f"{self.original_class.__name__} defines its own pickling, which a reconstructed "
                "copy cannot follow; save the state dict, or fold first"
            )
        state, *rest = rest
        if not (isinstance(state, dict) and "_modules" in state):
            held = [name for pair in self.names for name in pair if name]
            state = OwnState(
                state,
                {name: self._parameters[name] for name in held},
                {f"{weight}_fisher": fisher_of(self, weight) for weight, _ in self.names},
            )
        return (_new, (self.original_class, self.names, *arguments[1:]), state, *rest)

    def __setstate__(self, state: Any) -> None:
        """Make a copy or a loaded module known to the hooks; capture what a file left out."""
        if isinstance(state, OwnState):
            with _as_original(self):
                cast(Any, self).__setstate__(state.given)
            self._parameters.update(state.parameters)
            self._modules.update(state.layers)
        else:
            super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.__dict__.get("program") is None:
            self.__dict__["program"] = _program_of(self)
        install_averaged_model_hook()
        install_data_parallel_hook()
        register_copy(self)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Take a plain checkpoint too: it holds weights and no Fisher layers."""
        is_assigned = local_metadata.get("assign_to_params_buffers", False)
        for site in self.local_sites():
            fisher_prefix = f"{prefix}{site.fisher_name}."
            if any(key.startswith(fisher_prefix) for key in state_dict):
                take_form_(site, state_dict, prefix)
                fit_remainders_in_(site, state_dict, prefix, is_assigned)
                unfold_in_state_(site, state_dict, prefix)
                keep_together_(site, state_dict, prefix)
                continue
            # A partial checkpoint may hold neither: then w' stays, and with it its root.
            if any(n and f"{prefix}{n}" in state_dict for n in (site.weight_name, site.bias_name)):
                refuse_prime(site, state_dict, prefix)
                reset_(site)
            # A weight that is assigned brings its device along, as onto a network made on meta.
            weight = state_dict.get(f"{prefix}{site.weight_name}")
            if is_assigned and weight is not None and weight.device != site.fisher.sum.device:
                site.fisher.begin_anew_(weight.device)
            # torch loads from a copy of the caller's dictionary, children after their parent: so
            # the Fisher layer finds its present state here, and strict loading misses no key.
            state_dict.update(site.fisher.state_dict(prefix=fisher_prefix))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)
        take_from_state_(() if is_assigned else self.local_sites(), state_dict, prefix)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Give `w'` and the Fisher layers; `w` to who writes files for plain models."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        put_in_state_(self.local_sites(), destination, prefix, keep_vars)


def reconstruct_(plan: Plan) -> None:
    """Rewrite the planned modules in place; modules that share a weight share its Fisher layer."""
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("plan\n%s", plan_report(plan))
    trace_artifact("sngd_plan", lambda: plan_report(plan))
    layers: dict[int, FisherLayer] = {}
    with tracked(plan.modules, "rewriting") as each:
        for module_plan in each:
            for site, place in module_plan.sites:
                if id(site) not in layers:
                    weight = module_plan.module._parameters[place.weight_name]
                    assert weight is not None
                    layers[id(site)] = site.fisher_layer(weight.device)
            if module_plan.sites:
                _reconstruct_module_(module_plan, layers)


def _reconstruct_module_(plan: ModulePlan, layers: Mapping[int, FisherLayer]) -> None:
    module = plan.module
    places = [place for _, place in plan.sites]
    if plan.graph is not None:
        graph = plan.graph
        run_passes(graph, places, PASSES)
        trace_artifact("sngd_graph", lambda: graph_report(graph))
    program = Program(plan.graph, plan.names_read)
    for site, place in plan.sites:
        fisher = layers[id(site)]
        # A new module is in train mode, whatever the mode of the model is.
        fisher.train(module.training)
        fisher.bias_name = place.bias_name or fisher.bias_name
        module.add_module(place.fisher_name, fisher)
    names = tuple((place.weight_name, place.bias_name) for place in places)
    module.__dict__["program"] = program
    for members in members_of(type(module)):
        members.prepare(module)
    # The class changes and the object stays: whoever holds the module, or a hook on it, keeps it.
    module.__class__ = reconstructed_class(type(module), names)
    install_averaged_model_hook()
    install_data_parallel_hook()
    register_owner(module)


def fold_module_(module: Reconstructed) -> None:
    """Give one module its class, its ordinary weights and its own forward back, in place."""
    # The root returns to the identity first, which makes w' the ordinary w in the same tensor:
    # optimizers and other holders of the parameter keep what they hold.
    for site in module.local_sites():
        reset_(site)
        site.fisher.ties.stand_alone(site.fisher)
        del module._modules[f"{site.weight_name}_fisher"]
    del module.__dict__["program"]
    release_owner(module)
    module.__class__ = original = module.original_class  # type: ignore[assignment]
    for members in members_of(original):
        members.restore(module)


OfNames = WeakValueDictionary[Names, type["Reconstructed"]]

# Weak on both sides: a class that was made in a function goes with the networks of it.
_classes: WeakKeyDictionary[type[Any], OfNames] = WeakKeyDictionary()


def reconstructed_class(original: type[Any], names: Names) -> type[Reconstructed]:
    """Return the class of reconstructed modules of class `original`, made once."""
    of_names = _classes.setdefault(original, WeakValueDictionary())
    known = of_names.get(names)
    if known is None:
        known = of_names[names] = _make_class(original, names)
    return known


def _make_class(original: type[Any], names: Names) -> type[Reconstructed]:
    namespace: dict[str, Any] = {"original_class": original, "names": names}
    namespace |= attributes_of(names)
    for members in members_of(original):
        namespace |= members.attributes
    if hasattr(original, "reset_parameters"):
        namespace["reset_parameters"] = _reset_parameters
    for copied in ("__module__", "__qualname__", "__doc__"):
        namespace[copied] = getattr(original, copied)
    made = type(original.__name__, (Reconstructed, original), namespace)
    for members in members_of(original):
        members.on_class(made)
    return made


def _refuse_tie(site: LocalSite, name: str, param: nn.Parameter | None) -> None:
    """Refuse the `w'` of another layer, which would be an ordinary weight here."""
    other = None if param is None else name_of_layer(param)
    if other is not None:
        raise ModelError(
            f"{site.fisher.name}: its {name} is set to a parameter of {other}, which is "
            "reconstructed, so that each would read it under a root of its own; tie weights before "
            "reconstruct (sngd.fold gives the plain network back)"
        )


def _program_of(module: Reconstructed) -> Program:
    """Capture the forward of a reconstructed module again."""
    layers = {weight: fisher_of(module, weight) for weight, _ in module.names}
    names = dict(module.names)
    graph, places, names_read = match_again(module, module.original_class, names, layers)
    if graph is not None:
        run_passes(graph, places, PASSES)
    return Program(graph, names_read)


def _capture_if_read(module: Reconstructed, name: str) -> None:
    """Capture the forward again if what came of it depends on an attribute."""
    # None before the state of a module is there, which may be set in any order. Its class is what
    # folding sets.
    program: Program | None = module.__dict__.get("program")
    if program is not None and name in program.names_read and name != "__class__":
        module.__dict__["program"] = _program_of(module)


def _reset_parameters(module: Reconstructed) -> None:
    """Draw ordinary weights as the original class does; the roots return to the identity."""
    for site in module.local_sites():
        reset_(site)
    with _as_original(module):
        cast(Any, module).reset_parameters()


@contextmanager
def _as_original(module: Reconstructed) -> Iterator[None]:
    """Give a module its class back for a while: `self.weight` is the parameter itself."""
    reconstructed, plain = type(module), cast(Any, module)
    plain.__class__ = module.original_class
    try:
        yield
    finally:
        plain.__class__ = reconstructed


def _new(original: type[nn.Module], names: Names, *arguments: Any) -> Reconstructed:
    made = reconstructed_class(original, names)
    return made.__new__(made, *arguments)


def reconstructed_modules(net: nn.Module) -> Mapping[str, Reconstructed]:
    """Map the qualified names of the reconstructed modules of `net` to them."""
    if not isinstance(net, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, got {type(net).__name__}")
    return {name: m for name, m in net.named_modules() if isinstance(m, Reconstructed)}
