"""What must hold before a time is shown: a fast wrong step is no result."""

import copy

import torch
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile.layout import Layout
from steps.memory import fisher_memory

TOLERANCE = 1e-6


class GateError(Exception):
    """The reconstructed network is not the network that was to be timed."""


def check_network(
    network: nn.Module, plain: nn.Module, inputs: Tensor, labels: Tensor, criterion: nn.Module
) -> None:
    """Compare a reconstructed network with the ordinary one it stands for, in float64.

    In float32 a rounding decides which side of a ReLU is taken, and the gradient is another one.

    Args:
        network: The reconstructed network.
        plain: The model it was made of, or its fold.
        inputs: A batch.
        labels: Its targets.
        criterion: The loss.

    Raises:
        GateError: The outputs differ, a gradient is not finite or not `g R^T`, or a Fisher layer
            takes other memory than `explain` says.
    """
    for layer in fisher_memory(network):
        if layer.explained != layer.measured:
            raise GateError(
                f"{layer.name}: explain says {layer.explained} bytes, it takes {layer.measured}"
            )
    # In eval mode the batch is not observed.
    network, plain = (copy.deepcopy(net).double().eval() for net in (network, plain))
    inputs, labels = (t.double() if t.is_floating_point() else t for t in (inputs, labels))
    outputs, wanted = network(inputs), plain(inputs)
    _require_near("its outputs", outputs, wanted)
    gradients, plain_gradients = (
        _gradients(net, criterion(values, labels))
        for net, values in ((network, outputs), (plain, wanted))
    )
    for name, fisher in sngd.fisher_layers(network).items():
        # `weight_ih_l0` of a recurrent layer has `bias_ih_l0`.
        bias = "bias".join(name.rsplit("weight", 1)) if fisher.has_bias else None
        natural, usual = (
            _rows(found, name, bias, fisher.layout) for found in (gradients, plain_gradients)
        )
        root = fisher.root
        is_diagonal = fisher.spec.is_diagonal
        expected = usual * root[..., None, :] if is_diagonal else usual @ root.mT
        _require_near(f"{name}: its gradient", natural, expected)


def _gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def _rows(gradients: dict[str, Tensor], weight: str, bias: str | None, layout: Layout) -> Tensor:
    rows = layout.matrices(gradients[weight])
    if bias is None:
        return rows
    return torch.cat([rows, layout.vectors(gradients[bias])[..., None]], -1)


def _require_near(what: str, value: Tensor, expected: Tensor) -> None:
    error = float((value - expected).detach().norm() / expected.detach().norm())
    if not error <= TOLERANCE:
        raise GateError(f"{what}: relative error {error:.1e}, allowed {TOLERANCE:.0e}")
