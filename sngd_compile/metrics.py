"""What the Fisher layers of a network do, as numbers for TensorBoard and its like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot, isfinite
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sngd_compile.errors import ModelError
from sngd_compile.explain import distinct_sites
from sngd_compile.fisher.kinds.base import effective_rank, kind_of
from sngd_compile.fisher.layer import ROWS, FisherLayer
from sngd_compile.torch_private import ORIGINAL_MODULE, stored_values, version_of
from sngd_compile.training.sharding import whole
from sngd_compile.training.site import Site
from sngd_compile.training.steps.trust_region import bound_of

OF_INPUTS = ("damping", "relative_damping", "effective_rank", "condition", "residual")
OF_OUTPUTS = tuple(f"output_{name}" for name in OF_INPUTS[:-1])
"""What a root and its factor say, over the inputs and over the outputs of a layer."""

CONDITIONS = {"condition", "output_condition"}

Numbers = Tensor | list[float]
"""Numbers on a device, or on the host already."""


@dataclass(frozen=True)
class _Known:
    """What a root and its factor say, and which versions of their buffers that holds for."""

    buffers: list[tuple[ReferenceType[Tensor], int]]
    numbers: list[float]

    def is_of(self, buffers: Sequence[Tensor]) -> bool:
        """Say whether these are the buffers, and nobody has written to them since."""
        held = zip(self.buffers, buffers, strict=True)
        return all(known() is b and version_of(b) == version for (known, version), b in held)


_known: WeakKeyDictionary[FisherLayer, _Known] = WeakKeyDictionary()


def metrics(net: nn.Module) -> dict[str, float]:
    """Return what every Fisher layer does, as one flat dictionary for a logger.

    Call it between `backward()` and `optimizer.step()`, every so many steps; in an AMP run after
    `scaler.unscale_(optimizer)`. It changes nothing, and steps in between do nothing for it. A call
    waits for a device once for the whole network; the first one after a refresh decomposes the
    roots that were renewed, and what that gives is kept until the next refresh.

    Args:
        net: A reconstructed network, or a model compiled with `backend="sngd"`; in `torch.compile`
            or DistributedDataParallel too. Under `fully_shard` every process has to call this, as
            with `clip_grad_norm_`.

    Returns:
        Under `"<name of a weight>/<metric>"`, for a weight of several names under the first one:

        - damping: As `FisherLayer.damping`, absolute.
        - relative_damping: damping over the mean eigenvalue of what is damped; 0.0 while G is zero.
        - effective_rank: `trace(G)^2 / trace(G^2)`, in [1, D]; of several groups or units the mean;
          of a sketch for what its metric has in the place of G. 0.0 while G is zero.
        - condition: Largest over least eigenvalue of `FisherLayer.metric()`, at least 1.0; of
          several groups or units the largest.
        - residual: Share of the trace of G, in [0, 1], that a sketch leaves outside its columns;
          0.0 of an exact kind.
        - root_age: Optimizer steps since the root was made.
        - rows: Rows observed so far.
        - norm: Length of the present gradient in natural coordinates, `|g'| = sqrt(g G^-1 g)` with
          the damped G; 0.0 without a gradient.
        - bound: The largest norm that a step of `torch.optim.SGD` leaves it, from
          `Config.trust_radius` and `Config.trust_share`; 0.0 where there is none.
        - trust: How much of these two is left to the layer, in [0.001, 1], see `Config.trust_rate`.
        - share: norm^2 over its sum over all layers, in [0, 1]; 0.0 where that is nothing.

        A kronecker kind has the first four again, with `output_` before them, of its output side.

        Under `"total/<metric>"`: norm, of all layers together; plain_norm, of the gradients of all
        parameters without a Fisher layer, so that `clip_grad_norm_` returns
        `sqrt(norm^2 + plain_norm^2)`; layers and observed_layers; reconstructed_share and
        observed_share as `explain` has them; condition and root_age, the largest of all layers.

    Raises:
        ModelError: `net` is no module, or has a Fisher layer on the meta device.

    Source: docs/monitoring.md. Tested by tests/training/test_metrics.py.
    """
    sites = _measured_sites(net)
    with torch.no_grad():
        of_layers, plain_norm = _measure(net, list(sites.values()))
    norm = hypot(*(of_layer["norm"] for of_layer in of_layers))
    for of_layer in of_layers:
        of_layer["share"] = (of_layer["norm"] / norm) ** 2 if norm else 0.0
    found = {
        f"{name}/{metric}": value
        for name, of_layer in zip(sites, of_layers, strict=True)
        for metric, value in of_layer.items()
    }
    total = {"norm": norm, "plain_norm": plain_norm}
    total |= _coverage(net, list(sites.values()), of_layers)
    return found | {f"total/{metric}": value for metric, value in total.items()}


def _measured_sites(net: nn.Module) -> dict[str, Site]:
    """Return each Fisher layer once, by the first name of its weight, without compiled wrappers."""
    sites = distinct_sites(net)
    for name, site in sites.items():
        if site.fisher.factor.is_meta:
            raise ModelError(
                f"{name}: its Fisher layer is on the meta device and has no numbers, so there is "
                "nothing to log; call metrics after net.to_empty(device=...) and loading a state"
            )
    return {name.replace(f"{ORIGINAL_MODULE}.", ""): site for name, site in sites.items()}


def _measure(net: nn.Module, sites: Sequence[Site]) -> tuple[list[dict[str, float]], float]:
    """Return the metrics of every layer but its share, and the norm of all other gradients."""
    layers = [site.fisher for site in sites]
    of_roots = [_of_root(layer) for layer in layers]
    rows = [layer.absorbed_rows + layer.tally[ROWS] for layer in layers]
    gradients = [site.prime_gradients() for site in sites]
    held = {id(parameter) for site in sites for parameter in _parameters(site)}
    others = [p.grad for p in net.parameters() if id(p) not in held and p.grad is not None]
    parameters = [site.prime_parameters() for site in sites]
    measured = (*gradients, *parameters, others)
    norms = [_norm(tensor) for of_site in measured for tensor in of_site]
    fetched = iter(_on_host([*of_roots, *rows, *norms]))
    known = [next(fetched) for _ in layers]
    seen = [next(fetched)[0] for _ in layers]
    *lengths, plain_norm = [hypot(*(next(fetched)[0] for _ in part)) for part in measured]
    lengths, sizes = lengths[: len(sites)], lengths[len(sites) :]
    found = []
    each = zip(layers, known, seen, lengths, sizes, strict=True)
    for layer, numbers, number, length, size in each:
        _keep(layer, numbers)
        names = OF_INPUTS + (OF_OUTPUTS if layer.output_side is not None else ())
        of_layer = dict(zip(names, numbers, strict=True))
        age = float(layer.schedule.root_age)
        before = layer.trust
        trust = replace(before, prime_norm=size) if before.prime_norm is None else before
        bound = bound_of(layer, trust)
        of_layer |= {"root_age": age, "rows": number, "norm": length}
        of_layer |= {"bound": bound if isfinite(bound) else 0.0, "trust": layer.trust.share}
        found.append(of_layer)
    return found, plain_norm


def _of_root(layer: FisherLayer) -> Numbers:
    """Return `OF_INPUTS`, and `OF_OUTPUTS` where there are any: what is known of them, or anew."""
    known = _known.get(layer)
    if known is not None and known.is_of(_read(layer)):
        return known.numbers
    kind, root = kind_of(layer.spec), layer.root_buffers
    spec = replace(layer.spec, scale=layer.scale)  # that of the present root
    damping, factor = layer.absolute_damping, layer.factor
    mean = kind.traces(spec, factor).mean() * (spec.scale / spec.size)
    rank = kind.effective_rank(spec, factor, root).mean()
    numbers = [damping, _ratio(damping, mean), rank, _condition(root.singular_range())]
    numbers.append(kind.residual(spec, factor, root).mean())
    if (outputs := layer.output_side) is not None:
        damping, diagonal = outputs.absolute_damping, outputs.factor.diagonal(dim1=-2, dim2=-1)
        rank = effective_rank([outputs.factor], [diagonal]).mean()
        condition = _condition(root.sides[-1].singular_range())
        numbers += [damping, _ratio(damping, diagonal.mean()), rank, condition]
    return torch.stack(numbers)


def _condition(singular: tuple[Tensor, Tensor]) -> Tensor:
    """Return the largest condition number of `R^T R`."""
    least, largest = singular
    return (largest / least).amax().square()


def _ratio(damping: Tensor, mean: Tensor) -> Tensor:
    return torch.where(mean > 0, damping / mean, 0.0)


def _read(layer: FisherLayer) -> list[Tensor]:
    """List the buffers that `_of_root` reads."""
    outputs = layer.output_side
    beside = [] if outputs is None else [outputs.factor, outputs.absolute_damping]
    own = [layer.factor, layer.absolute_damping]
    return [*own, *beside, *layer.root_buffers.buffers()]


def _keep(layer: FisherLayer, numbers: list[float]) -> None:
    """Remember numbers until a buffer that they are of is written to or replaced."""
    buffers = _read(layer)
    if not any(buffer.is_inference() for buffer in buffers):  # those count no versions
        _known[layer] = _Known([(ref(b), version_of(b)) for b in buffers], numbers)


def _norm(gradient: Tensor) -> Tensor:
    """Return the norm of a gradient of any layout, of all processes where it is sharded."""
    values = stored_values(gradient.coalesce() if gradient.is_sparse else gradient)
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return whole(norm)


def _on_host(numbers: Sequence[Numbers]) -> list[list[float]]:
    """Fetch all tensors of a device in one transfer; lists pass."""
    devices: dict[torch.device, list[int]] = defaultdict(list)
    found = [[] if isinstance(part, Tensor) else part for part in numbers]
    for index, part in enumerate(numbers):
        if isinstance(part, Tensor):
            devices[part.device].append(index)
    for indices in devices.values():
        parts = [torch.as_tensor(numbers[index]).double().reshape(-1) for index in indices]
        flat = iter(torch.cat(parts).tolist())
        for index, part in zip(indices, parts, strict=True):
            found[index] = [next(flat) for _ in range(part.numel())]
    return found


def _parameters(site: Site) -> list[Tensor]:
    """List the weight, and the bias where it is a coordinate of its local Fisher."""
    bias = site.bias if site.fisher.spec.has_bias else None
    return [site.weight] if bias is None else [site.weight, bias]


def _coverage(
    net: nn.Module, sites: Sequence[Site], of_layers: Sequence[dict[str, float]]
) -> dict[str, float]:
    """Return how much of a network is reconstructed and observed, and the worst of its layers."""
    sizes = [sum(p.numel() for p in _parameters(site)) for site in sites]
    seen = [size for size, of in zip(sizes, of_layers, strict=True) if of["rows"]]
    wanted = sum(p.numel() for p in net.parameters() if p.requires_grad and not is_lazy(p))
    return {
        "layers": float(len(sizes)),
        "observed_layers": float(len(seen)),
        "reconstructed_share": sum(sizes) / wanted if wanted else 0.0,
        "observed_share": sum(seen) / sum(sizes) if sizes else 0.0,
        "condition": max(
            (of[name] for of in of_layers for name in CONDITIONS & of.keys()), default=1.0
        ),
        "root_age": max((of["root_age"] for of in of_layers), default=0.0),
    }
