"""What a forward does with the parameters of its children, beside calling them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from sngd_compile.capture.bytecode import is_of_torch, is_python, names_read
from sngd_compile.plan.matching import Findings, Found
from sngd_compile.plan.parameter_uses import Occurrence
from sngd_compile.plan.records import qualified
from sngd_compile.plan.rehearsal import Rehearsal

ClassOf = Callable[[nn.Module], type[nn.Module]]


def uses_elsewhere(
    model: nn.Module, class_of: ClassOf, wanted: Collection[Tensor]
) -> Mapping[Tensor, list[Occurrence]]:
    """Find, for each parameter, what the forwards of modules above its own do with it.

    Such a use counts like one in its own module: a child's weight that the forward above it takes
    in its own hands would not be observed otherwise, or not in all its uses.

    Args:
        model: The model.
        class_of: The class whose forward a module runs.
        wanted: The parameters that can be reconstructed.
    """
    found: dict[Tensor, list[Occurrence]] = defaultdict(list)
    for number, module in enumerate(model.modules(), start=1):
        module_class = class_of(module)
        if isinstance(module, torch.jit.ScriptModule) or not is_python(module_class.forward):
            continue
        # What a layer of torch does with its children is known.
        if is_of_torch(module_class.forward) or "forward" in module.__dict__:
            continue
        reached = _reached(module, module_class, class_of)
        names = {p: n for p, n in reached if p in wanted}
        if not names:
            continue
        rehearsal = Rehearsal(module, module_class, names)
        heard: dict[str, Found] = {n: use for n in names.values() if (use := rehearsal.found(n))}
        findings = Findings(None, heard)
        parameters = {name: parameter for parameter, name in names.items()}
        for name in heard:
            # Modules that own parameters have the numbers from 0 up.
            found[parameters[name]].append(Occurrence(-number, parameters, name, findings))
    return found


def _reached(
    module: nn.Module, module_class: type[nn.Module], class_of: ClassOf
) -> Iterator[tuple[nn.Parameter, str]]:
    """List the parameters of children that a forward may read, by attribute or by a method."""
    read = names_read(module_class, module_class.forward)
    own = {id(p) for p in module._parameters.values()}
    for child_name, child in module.named_modules():
        if child is module or not child._parameters:
            continue
        is_container = isinstance(child, nn.ParameterList | nn.ParameterDict)
        whole = is_container or not read.isdisjoint(_methods(class_of(child)))
        for name, parameter in child._parameters.items():
            if parameter is not None and id(parameter) not in own and (whole or name in read):
                yield parameter, qualified(child_name, name)


def _methods(child_class: type[nn.Module]) -> set[str]:
    """List the methods that a class adds to those of every module."""
    return {
        name
        for base in child_class.__mro__
        if base.__module__.partition(".")[0] not in ("torch", "builtins")
        for name, value in vars(base).items()
        if callable(value) and not hasattr(nn.Module, name)
    }
