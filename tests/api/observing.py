"""What every local Fisher does in copies, in files and in graphs."""

import copy
import io
from collections.abc import Callable

import torch
from torch import nn

import sngd_compile as sngd
from sngd_compile import Config

Step = Callable[[nn.Module, int], None]
"""Takes a step of a seed, and renews the roots."""


def copies_and_files_observe_alike(
    build: Callable[[], nn.Module], config: Config, weight: str, step: Step
) -> None:
    """A copy, a pickle and a state dict, made after one step, take the next as the network does."""
    net = sngd.reconstruct(build(), config)
    step(net, 0)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    fresh = sngd.reconstruct(build(), config)
    fresh.load_state_dict(net.state_dict())
    others = [copy.deepcopy(net), torch.load(file, weights_only=False), fresh]
    for one in (net, *others):
        one.zero_grad()
        step(one, 1)
    for other in others:
        for key, value in net.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-12, atol=1e-14)
    assert sngd.fisher_layers(net)[weight].rows_seen == 12


def one_graph_observes_alike(build: Callable[[], nn.Module], config: Config) -> None:
    """A network that is compiled to one graph observes what the network itself does."""
    nets = [sngd.reconstruct(build(), config) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    compiled = torch.compile(nets[1], backend="aot_eager", fullgraph=True)
    x = torch.randn(6, 5)
    for net in (nets[0], compiled):
        net(x).sum().backward()
    for net in nets:
        sngd.refresh_(net)
    for one, other in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
