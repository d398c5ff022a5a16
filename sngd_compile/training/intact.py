"""What a reconstructed module must have, and the typed error where other code took it away.

The optimizer hooks of this process see every reconstructed module. One that was damaged, as by a
`del module._parameters["weight"]`, must stop whoever uses or steps it, and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import Tensor, nn

from sngd_compile.errors import ModelError
from sngd_compile.fisher.layer import FisherLayer

REMEDY = (
    "training it further would train another function. Call sngd.fold first, change the folded "
    "network, and reconstruct that"
)


@dataclass(frozen=True)
class Registered:
    """What a module was when the optimizer hooks got to know it.

    Args:
        names: Of each reconstructed weight, from attribute to qualified name.
        parameters: Every w' and b'; nothing here keeps one alive.
    """

    names: dict[str, str]
    parameters: list[ReferenceType[Tensor]]


_registered: WeakKeyDictionary[nn.Module, Registered] = WeakKeyDictionary()


def remember(module: nn.Module) -> None:
    """Keep what names a module's layers and finds their optimizer, should they be damaged.

    Each Fisher layer learns where its weight is.
    """
    sites, _ = sites_or_error(module)
    for site in sites:
        site.fisher.ties.weight = partial(held_by, ref(module), site.weight_name)
    names = {site.weight_name: site.fisher.name for site in sites}
    held = [p for site in sites for p in (site.weight, site.bias) if p is not None]
    _registered[module] = Registered(names, [ref(parameter) for parameter in held])


def held_by(owner: Callable[[], Any], name: str) -> Tensor | None:
    """Return a parameter or buffer of a module, which may be gone, or have lost it."""
    module = owner()
    held = {} if module is None else vars(module)
    tables = [held.get(table) or {} for table in ("_parameters", "_buffers")]
    found: Tensor | None = next((table[name] for table in tables if name in table), None)
    return found


def parameters_of(owner: Any) -> list[Any]:
    """List what an owner of sites holds, and what it held when it was registered."""
    known = _registered.get(owner)
    once = [] if known is None else [reference() for reference in known.parameters]
    held = vars(owner).get("_parameters") or {}
    return [parameter for parameter in (*held.values(), *once) if parameter is not None]


def fisher_of(module: nn.Module, weight: str) -> FisherLayer:
    """Return the Fisher layer of a module's weight.

    Raises:
        ModelError: It is gone.
    """
    fisher = module._modules.get(f"{weight}_fisher")
    if not isinstance(fisher, FisherLayer):
        known = _registered.get(module)
        name = known.names.get(weight) if known else None
        name = name or f"{type(module).__name__}.{weight}"
        raise ModelError(f"{name}: other code took its local Fisher layer away; {REMEDY}")
    return fisher


def prime_of(module: nn.Module, weight: str, name: str) -> nn.Parameter:
    """Return the parameter `w'` or `b'` that a module holds under a name.

    Args:
        module: A reconstructed module.
        weight: Name of the weight.
        name: The same, or the name of its bias.

    Raises:
        ModelError: It is gone.
    """
    parameter = module._parameters.get(name)
    if parameter is None:
        layer = fisher_of(module, weight).name
        raise ModelError(f"{layer}: other code took its parameter {name!r} away; {REMEDY}")
    return parameter


def check_intact(module: nn.Module, names: Iterable[tuple[str, str | None]]) -> None:
    """Check that the pairs of weight and bias of a reconstructed module are as they were made.

    Raises:
        ModelError: A parameter or a Fisher layer is gone, or a parameter has another shape.
    """
    for weight, bias in names:
        layout = fisher_of(module, weight).layout
        sizes = {weight: prod(layout.matrix)} | ({bias: layout.all_outputs} if bias else {})
        for name, size in sizes.items():
            parameter = prime_of(module, weight, name)
            if parameter.numel() != size:
                raise ModelError(
                    f"{fisher_of(module, weight).name}: other code gave its parameter {name!r} the "
                    f"shape {tuple(parameter.shape)}, of {parameter.numel()} numbers instead of "
                    f"{size}; {REMEDY}"
                )


def check_distinct(sites: Iterable[Any]) -> None:
    """Check that no two local Fishers have one weight, as after a tie past the library.

    Raises:
        ModelError: Two have; a change of the root of one would change the other's weight.
    """
    known: dict[int, FisherLayer] = {}
    for site in sites:
        other = known.setdefault(id(site.weight), site.fisher)
        if other is not site.fisher:
            names = " and ".join(sorted((other.name, site.fisher.name)))
            raise ModelError(
                f"{names}: other code gave both the same parameter, and each has a local Fisher of "
                f"its own; {REMEDY}"
            )


def sites_or_error(owner: Any) -> tuple[list[Any], ModelError | None]:
    """List the sites of a reconstructed module, or return what is wrong with it.

    Args:
        owner: Who was registered with the optimizer hooks. Its class may be another by now, and
            anything may be missing.
    """
    try:
        return [*owner.local_sites()], None
    except ModelError as error:
        return [], error
    except Exception as error:
        layers = [*(vars(owner).get("_modules") or {}).values()]
        names = [layer.name for layer in layers if isinstance(layer, FisherLayer)]
        return [], ModelError(
            f"{', '.join(names) or type(owner).__name__}: other code changed this reconstructed "
            f"{type(owner).__name__} ({type(error).__name__}: {error}); {REMEDY}"
        )
