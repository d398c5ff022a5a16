"""States that other libraries load into plain models: their weights are `w`, not `w'`.

`save_pretrained`, as transformers, diffusers and the Hugging Face hub have it, writes what
`from_pretrained` loads into a plain model, which takes what it knows by name and leaves the rest.
So what it gets are folded weights, with the Fisher layers beside them and a mark, whether it asks
for a state or is handed one. A reconstructed network that loads it has its `w'` again, under the
root that is in the file.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import wraps
from typing import Any, cast
from weakref import WeakSet, WeakValueDictionary, ref

import torch
from torch import Tensor

from sngd_compile.errors import ModelError
from sngd_compile.fisher.kinds.base import first_root
from sngd_compile.fisher.roots.base import Pair, Root
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.fisher.weight_map import visibly_mapped
from sngd_compile.torch_private import loads_as_torch
from sngd_compile.training.refresh import LocalSite, present_root
from sngd_compile.training.sharding import is_sharded, whole

SAVER = "save_pretrained"
"""The name of the methods whose files are loaded into plain models."""

ASKING = frozenset({SAVER, "get_peft_model_state_dict", "set_peft_model_state_dict"})
"""The names of all functions that ask for a state which plain models load, or for its keys."""

HANDED = "state_dict"
"""The name of the argument by which they are handed a state."""

MARK = "fisher.folded"
"""Ends the key, after the name of a weight, that says of a state that the weight is folded."""

State = MutableMapping[str, Any]


class _Last:
    """The state that was written last, and the folded weights in it, by their parameters."""

    def __init__(self, state: Any = None) -> None:
        self.state: Any = ref(state) if state is not None else lambda: None
        self.folded: WeakValueDictionary[int, Tensor] = WeakValueDictionary()


_last = _Last()
_folding_savers: WeakSet[Any] = WeakSet()


def is_for_plain_models() -> bool:
    """Say whether a state is asked for that a plain model will load."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in ASKING:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def put_in_state_(sites: Iterable[LocalSite], state: State, prefix: str, keep_vars: bool) -> None:
    """Put `w'` and `b'` into a state, or `w` and `b` where plain models shall load it.

    A class that makes a state of its own may have read its attributes, which are `w` and `b`.

    Raises:
        ModelError: A weight is sharded, and plain models shall load it.
    """
    is_folded = is_for_plain_models()
    for site in sites:
        for key, parameter in _keys_of(site, prefix):
            if key in state:
                state[key] = parameter if keep_vars else parameter.detach()
        if is_folded:
            _fold_in_state_(site, state, prefix)


@torch.no_grad()
def take_from_state_(sites: Iterable[LocalSite], state: State, prefix: str) -> None:
    """Take `w'` and `b'` of a state that a class of its own has loaded into its attributes."""
    for site in sites:
        if loads_as_torch(cast(Any, site.module).original_class):
            continue
        for key, parameter in _keys_of(site, prefix):
            value = state.get(key)
            is_part = is_sharded(parameter) or parameter.is_meta
            if isinstance(value, Tensor) and value.shape == parameter.shape and not is_part:
                parameter.copy_(value)


def _keys_of(site: LocalSite, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in ((site.weight_name, site.weight), (site.bias_name, site.bias)):
        if name is not None and parameter is not None:
            yield f"{prefix}{name}", parameter


@torch.no_grad()
def _fold_in_state_(site: LocalSite, state: State, prefix: str) -> None:
    """Put the folded weight and bias of a site in the place of `w'` and `b'`.

    Raises:
        ModelError: The weight is sharded.
    """
    if is_sharded(site.weight):
        raise ModelError(
            f"{site.fisher.name} is sharded, so that no plain model can load what this process has "
            "of it; gather the state, load it into one process, and save sngd.fold of that"
        )
    global _last
    if _last.state() is not state:
        _last = _Last(state)
    root = present_root(site.fisher, torch.float64)
    values = visibly_mapped("fold", root, site.fisher.layout, site.weight, site.bias)
    _put_folded_(site, state, prefix, values, _last.folded)


def _put_folded_(
    site: LocalSite,
    state: State,
    prefix: str,
    values: Iterable[Tensor | None],
    known: MutableMapping[int, Tensor],
) -> None:
    """Put a folded weight and bias into a state, and the mark."""
    names, parameters = (site.weight_name, site.bias_name), (site.weight, site.bias)
    for name, parameter, value in zip(names, parameters, values, strict=True):
        if name is not None and parameter is not None and value is not None:
            # Names that share a parameter share the folded one, as savers find ties by memory.
            state[f"{prefix}{name}"] = known.setdefault(id(parameter), value.contiguous())
    state[f"{prefix}{site.weight_name}_{MARK}"] = torch.ones((), dtype=torch.int64)


def let_saver_fold(
    model: type[Any], sites: Callable[[Any], Iterable[tuple[str, LocalSite]]]
) -> None:
    """Let `save_pretrained` of a class fold the state of a network that is handed to it.

    Args:
        model: The class; one whose method takes no state stays as it is.
        sites: Returns the sites of a network, each with the prefix of its module in a state.
    """
    owner = next((kind for kind in model.__mro__ if SAVER in vars(kind)), None)
    save = None if owner is None else vars(owner)[SAVER]
    if not inspect.isfunction(save) or save in _folding_savers:
        return
    signature = inspect.signature(save)
    kinds = {parameter.kind: name for name, parameter in signature.parameters.items()}
    others = kinds.get(inspect.Parameter.VAR_KEYWORD)
    is_named = HANDED in signature.parameters
    # Or taken out of the others, as by `kwargs.get("state_dict")`.
    if not is_named and (others is None or HANDED not in save.__code__.co_consts):
        return

    @wraps(save)
    def save_pretrained(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        given = call.arguments if is_named else call.arguments.setdefault(str(others), {})
        state, held = given.get(HANDED), list(sites(call.args[0]))
        if isinstance(state, MutableMapping):
            state = given[HANDED] = copy.copy(state)
            known: dict[int, Tensor] = {}
            for prefix, site in held:
                _fold_handed_(site, state, prefix, known)
        elif state is None and held and not is_named:
            # Asked for here, so it is folded. Of one that peft asks for itself it looks at shapes,
            # and takes a Fisher layer for an adapter of which a part is missing.
            given[HANDED] = call.args[0].state_dict()
        return save(*call.args, **call.kwargs)

    _folding_savers.add(save_pretrained)
    setattr(owner, SAVER, save_pretrained)


@torch.no_grad()
def _fold_handed_(site: LocalSite, state: State, prefix: str, known: dict[int, Tensor]) -> None:
    """Fold a site in a state that somebody else made, under the root that is in it."""
    if f"{prefix}{site.weight_name}_{MARK}" not in state:
        values = _mapped_in("fold", site, state, prefix)
        if values is not None:
            _put_folded_(site, state, prefix, values, known)


@torch.no_grad()
def unfold_in_state_(site: LocalSite, state: State, prefix: str) -> None:
    """Put `w'` and `b'`, under the root in the state, in the place of a folded weight and bias."""
    if state.pop(f"{prefix}{site.weight_name}_{MARK}", None) is None:
        return
    values = _mapped_in("unfold", site, state, prefix)
    if values is not None:
        names = (site.weight_name, site.bias_name)
        pairs = zip(names, values, strict=True)
        state.update((f"{prefix}{name}", value) for name, value in pairs if value is not None)


def _mapped_in(name: str, site: LocalSite, state: State, prefix: str) -> Pair | None:
    """Map the weight and the bias that are in a state under the root that is in it.

    Returns:
        Both; None where a part is missing or of another shape, as loading says.
    """
    keys = [f"{prefix}{own}" for own in (site.weight_name, site.bias_name) if own is not None]
    given = [state.get(key) for key in keys]
    shapes = [p.shape for p in (site.weight, site.bias) if p is not None]
    if [getattr(value, "shape", None) for value in given] != shapes:
        return None
    try:
        root = root_in(site.fisher.spec, state, keys[0])
    except KeyError:
        return None
    pair = cast(Pair, (*given, None)[:2])
    return visibly_mapped(name, root, site.fisher.layout, *pair)


def root_in(spec: FisherSpec, state: Mapping[str, Any], weight: str) -> Root:
    """Read the root of a weight from a state, in float64, onto the device of the weight there.

    Args:
        spec: Of its local Fisher.
        state: Whatever holds it.
        weight: Key of the weight.

    Raises:
        KeyError: The part of this key is missing, or has another shape.
    """
    root = first_root(spec, torch.float64, state[weight].device)
    for name, buffer in root.named_buffers():
        key = f"{weight}_fisher.root_buffers.{name}"
        given = state.get(key)
        if not isinstance(given, Tensor) or given.shape != buffer.shape:
            raise KeyError(key)
        buffer.copy_(given)
    return root


def refuse_prime(site: LocalSite, state: State, prefix: str) -> None:
    """Refuse `w'` that would be taken for `w`: a state without its Fisher layer holds weights.

    Raises:
        ModelError: The numbers are near the present `w'` and far from the present `w`.
    """
    given, prime = state.get(f"{prefix}{site.weight_name}"), site.weight.detach()
    if not isinstance(given, Tensor) or given.is_meta or prime.is_meta or is_sharded(prime):
        return
    if given.shape != prime.shape:
        return  # loading says so
    root, layout = present_root(site.fisher, torch.float64), site.fisher.layout
    with torch.no_grad():
        weight, _ = visibly_mapped("fold", root, layout, prime, site.bias)
    value = whole(given.detach()).to(prime)
    from_prime, from_weight = ((value - other).norm() for other in (prime, weight))
    if bool(from_prime < from_weight / 2) and bool((weight - prime).norm() > weight.norm() / 1000):
        raise ModelError(
            f"{site.fisher.name}: the state that is loaded has no Fisher layer, so its weights are "
            "taken for ordinary ones, but these are near the parameter w' of this network and far "
            "from its weight. Load the whole state_dict(); for an average of parameters call "
            "sngd.follow(copy, net), or average the weights of sngd.fold(net)"
        )
