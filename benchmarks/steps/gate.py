"""What must hold before a time is shown: a fast wrong step is no result."""

import torch
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile.layout import Layout
from steps.memory import fisher_memory

FUNCTION_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3


class GateError(Exception):
    """The reconstructed network is not the network that was to be timed."""


def check_network(
    network: nn.Module, plain: nn.Module, inputs: Tensor, labels: Tensor, criterion: nn.Module
) -> None:
    """Compare a reconstructed network with the ordinary one it stands for, in float32.

    Args:
        network: The reconstructed network; its gradients are overwritten.
        plain: The model it was made of, or its fold.
        inputs: A batch.
        labels: Its targets.
        criterion: The loss.

    Raises:
        GateError: The outputs differ, a gradient is not finite or not `g R^T`, or a Fisher layer
            takes other memory than `explain` says.
    """
    network.eval()  # the batch must not be observed
    outputs, wanted = network(inputs), plain.eval()(inputs)
    _require_near("its outputs", outputs, wanted, FUNCTION_TOLERANCE)
    gradients, plain_gradients = (
        _gradients(net, criterion(values, labels))
        for net, values in ((network, outputs), (plain, wanted))
    )
    for name, fisher in sngd.fisher_layers(network).items():
        bias = f"{name.removesuffix('weight')}bias" if fisher.has_bias else None
        natural, usual = (
            _rows(found, name, bias, fisher.layout) for found in (gradients, plain_gradients)
        )
        root = fisher.root
        is_diagonal = fisher.spec.is_diagonal
        expected = usual * root[..., None, :] if is_diagonal else usual @ root.mT
        _require_near(f"{name}: its gradient", natural, expected, GRADIENT_TOLERANCE)
    network.train()
    for layer in fisher_memory(network):
        if layer.explained != layer.measured:
            raise GateError(
                f"{layer.name}: explain says {layer.explained} bytes, it takes {layer.measured}"
            )


def _gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def _rows(gradients: dict[str, Tensor], weight: str, bias: str | None, layout: Layout) -> Tensor:
    rows = layout.matrices(gradients[weight])
    if bias is None:
        return rows
    return torch.cat([rows, layout.vectors(gradients[bias])[..., None]], -1)


def _require_near(what: str, value: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((value - expected).detach().norm() / expected.detach().norm())
    if not error <= tolerance:
        raise GateError(f"{what}: relative error {error:.1e}, allowed {tolerance:.0e}")
