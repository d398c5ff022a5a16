"""Layers with one weight, whose forward is what a test is about."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd


class Layer(nn.Linear):
    """A linear layer `[N, 3] -> [N, 3]` whose forward others write."""

    def __init__(self):
        super().__init__(3, 3)

    def linear(self, x: Tensor) -> Tensor:
        """Apply the weight and the bias."""
        return F.linear(x, self.weight, self.bias)


def layer(forward: Callable[..., Any]) -> Layer:
    """Make a `Layer` with this forward."""
    return type("Written", (Layer,), {"forward": forward})()


def reason(model: nn.Module) -> str:
    """Return the reason for which a layer's own forward runs, or for which its weight is left."""
    plan = sngd.explain(model)
    reasons = {site.weight_name: site.note for site in plan.sites}
    reasons |= {skip.name: skip.reason for skip in plan.skips}
    assert sngd.graph(sngd.reconstruct(model)) == {}
    return reasons["weight"]


def tensors(value: Any) -> list[Tensor]:
    """List the tensors of a nested output."""
    if isinstance(value, Tensor):
        return [value]
    members = value.values() if isinstance(value, dict) else value
    return [tensor for member in members for tensor in tensors(member)]


def behaviour(model: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    """Return outputs and gradients, in train and in eval mode."""
    seen: list[Tensor] = []
    for mode in (True, False):
        model.train(mode)
        model.zero_grad()
        torch.manual_seed(7)
        outputs = tensors(model(*args, **kwargs))
        seen += [output.detach() for output in outputs]
        if outputs[0].requires_grad:
            sum((k + 1) * output.square().sum() for k, output in enumerate(outputs)).backward()
        seen += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return seen


def assert_same(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Reconstruct, and demand what the model does, in both modes; return the network."""
    net = sngd.reconstruct(model)
    expected = behaviour(model, *args, **kwargs)
    torch.testing.assert_close(behaviour(net, *args, **kwargs), expected)
    return net
