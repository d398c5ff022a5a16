"""Targets drawn from the model's own distribution, for the output side of local Fishers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Generator, Tensor, nn

from sngd_compile.errors import ConfigError, ModelError
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.output_side import DRAWS, SAMPLES
from sngd_compile.fisher.schedule import SEED
from sngd_compile.modules.reconstructed import reconstructed_modules
from sngd_compile.training.sharding import is_sharded

Distribution = Literal["categorical", "bernoulli", "gaussian"]


def sample_fisher_(network: nn.Module, outputs: Tensor, *, distribution: Distribution) -> None:
    """Show the output sides of a network the gradients of targets that the network itself draws.

    Call it between the forward pass and `loss.backward()` of a network that is reconstructed with
    `Config(output_gradients="sampled")`. On steps that are not observed it does nothing. Otherwise
    it costs a backward pass: B becomes the second moment of the gradients of `-log p(y | x)`, with
    y drawn from p, whose expectation is the Fisher. The batch size, the reduction and the scale of
    the loss do not enter. No `.grad` changes, and the global generator is not touched.

    Args:
        network: The network, or what wraps it: `torch.compile`, DistributedDataParallel.
        outputs: What it returned for this batch, with its graph; `distribution` says of what.
        distribution: "categorical", logits with the classes along the last axis, every other index
            a draw; "bernoulli", logits of any shape; "gaussian", means of variance 1, whose loss is
            `|outputs - y|^2 / 2`. Of the last two a draw is an index of the first axis.

    Raises:
        ConfigError: The distribution is none of these, or no layer is configured for samples.
        ModelError: The outputs are no tensor, have no graph or no axis, a weight is sharded by
            `fully_shard`, or the network is compiled with donated buffers.

    Source: J. Martens, R. Grosse (arXiv 1503.05671), section 5; docs/method.md, local Fishers.
    """
    if distribution not in RESIDUALS:
        known = ", ".join(get_args(Distribution))
        raise ConfigError(f"distribution = {distribution!r}: expected one of {known}")
    _check(outputs)
    weights = _observing(network)
    if not weights or outputs.numel() == 0:
        return
    layers = list(weights)
    first = layers[0]
    draws = outputs.shape[0] if distribution != "categorical" else outputs[..., 0].numel()
    assert first.output_side is not None
    seed = _seed(int(first.schedule.gate[SEED]), int(first.output_side.tally[DRAWS]))
    residual = RESIDUALS[distribution](outputs.detach(), torch.Generator().manual_seed(seed))
    before = [_samples(layer).clone() for layer in layers]
    for layer in layers:
        layer.schedule.open_backward()
    try:
        _backward(outputs, list(weights.values()), residual)
    finally:
        for layer in layers:
            layer.schedule.close_backward()
    for layer, samples in zip(layers, before, strict=True):
        assert layer.output_side is not None
        layer.output_side.tally[DRAWS].add_((_samples(layer) > samples) * draws)


def _backward(outputs: Tensor, weights: list[Tensor], residual: Tensor) -> None:
    """Send a gradient back and keep the graph for the real one."""
    try:
        torch.autograd.grad(outputs, weights, residual, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "donated buffer" not in str(error):
            raise
        raise ModelError(
            "outputs of a compiled network whose backward pass overwrites what it needs, so that "
            "it can run only once: set torch._functorch.config.donated_buffer = False before the "
            "first step"
        ) from error


def _check(outputs: object) -> None:
    """Refuse what no gradient can be sent back through."""
    if not isinstance(outputs, Tensor):
        raise ModelError(f"outputs of type {type(outputs).__name__}: expected a tensor, the logits")
    if not outputs.requires_grad or outputs.dim() == 0:
        raise ModelError(
            f"outputs of shape {tuple(outputs.shape)}, requires_grad={outputs.requires_grad}: "
            "expected those of a forward pass with gradients, before any reduction"
        )


def _observing(network: nn.Module) -> dict[FisherLayer, Tensor]:
    """Map the Fisher layers that want samples in this step to their weights."""
    sites = [s for m in reconstructed_modules(network).values() for s in m.local_sites()]
    if not any(site.fisher.config.output_gradients == "sampled" for site in sites):
        raise ConfigError(
            "no layer of this network wants sampled gradients: reconstruct it with "
            'Config(fisher="kronecker" or "eigen", output_gradients="sampled")'
        )
    found: dict[FisherLayer, Tensor] = {}
    for site in sites:
        fisher = site.fisher
        is_due = fisher.output_side is not None and fisher.schedule.observing
        if not is_due or fisher.config.output_gradients != "sampled":
            continue
        if is_sharded(site.weight):
            raise ModelError(
                f"{fisher.name}: sharded by fully_shard, so no gradient can be sampled; use "
                'output_gradients="empirical"'
            )
        found[fisher] = site.weight
    return found


def _samples(layer: FisherLayer) -> Tensor:
    assert layer.output_side is not None
    return layer.output_side.tally[SAMPLES]


def _seed(step: int, draws: int) -> int:
    """Return another seed for every forward pass, and none that rows are drawn with."""
    return (step + (draws + 1) * 2**33) % 2**63


def _wide(outputs: Tensor) -> Tensor:
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _categorical(logits: Tensor, generator: Generator) -> Tensor:
    """Return `softmax(logits) - onehot(y)`."""
    probabilities = _wide(logits).softmax(-1)
    bounds = probabilities.cumsum(-1)
    shape = logits.shape[:-1]
    uniform = torch.rand(*shape, 1, generator=generator, dtype=bounds.dtype, device="cpu")
    drawn = torch.searchsorted(bounds, uniform.to(bounds.device) * bounds[..., -1:], right=True)
    drawn.clamp_(max=logits.shape[-1] - 1)
    return probabilities.scatter_add(-1, drawn, -torch.ones_like(drawn, dtype=bounds.dtype)).to(
        logits.dtype
    )


def _bernoulli(logits: Tensor, generator: Generator) -> Tensor:
    """Return `sigmoid(logits) - y`."""
    probabilities = _wide(logits).sigmoid()
    uniform = torch.rand(logits.shape, generator=generator, dtype=probabilities.dtype, device="cpu")
    return (probabilities - (uniform.to(logits.device) < probabilities).to(probabilities)).to(
        logits.dtype
    )


def _gaussian(means: Tensor, generator: Generator) -> Tensor:
    """Return `means - y`."""
    dtype = torch.promote_types(means.dtype, torch.float32)
    noise = torch.randn(means.shape, generator=generator, dtype=dtype, device="cpu")
    return noise.to(means)


RESIDUALS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "categorical": _categorical,
    "bernoulli": _bernoulli,
    "gaussian": _gaussian,
}
"""The gradients of `-log p(y)` by the outputs, for y drawn from p."""
