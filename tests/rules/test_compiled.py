"""Layers that run as they are compile into one graph, and observe what they do in eager mode."""

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from sngd_compile import Config

pytestmark = pytest.mark.usefixtures("float64")
LAYERS = {
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), lambda: torch.randn(4, 3, 2, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 2, 3), lambda: torch.randn(4, 3, 2, 5)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(3, affine=True), lambda: torch.randn(4, 3, 5)),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(7, 3), lambda: torch.randint(7, (4, 5))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_compiled_layer_is_the_layer(name):
    make, draw = LAYERS[name]
    model, config = make(), Config(observe_every=1, refresh_every=1, max_rows=None)
    eager, compiled = (sngd.reconstruct(model, config) for _ in range(2))
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.01) for net in (eager, compiled)]
    for _ in range(3):
        x = draw()
        outputs = eager(x), run(x)
        torch.testing.assert_close(*outputs)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            output.square().mean().backward()
            optimizer.step()
    layers = [sngd.fisher_layers(net)["weight"] for net in (eager, compiled)]
    assert layers[0].rows_seen == layers[1].rows_seen > 0
    torch.testing.assert_close(layers[1].factor, layers[0].factor)
    assert all(map(torch.equal, compiled.buffers(), eager.buffers()))
