"""Networks compiled with the backend, beside the same ones reconstructed and trained in eager."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sngd_compile as sngd
from api import AS_IN_THE_PAPER
from sngd_compile import Config

SETTING = Config(
    refresh_every=4,
    early_refreshes=(1, 3),
    observe_every=1,
    early_observations=(),
    ema_decay=0.8,
    damping_rel_trace=1e-2,
    max_rows=None,
    **AS_IN_THE_PAPER,
)
INNER = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
# Where another test asks the same of inductor.
AT_NIGHT = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)]
Batch = tuple[Tensor, Tensor]


def compiled(model: nn.Module, inner: Any = "eager", config: Config = SETTING, **options: Any):
    """Compile with the backend."""
    given = {**asdict(config), "inner_backend": inner}
    return torch.compile(model, backend="sngd", options=given, **options)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with tanh between them, for inputs `[N, widths[0]]`."""
    widths = widths or (5, 6, 3)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())][:-1])


class Block(nn.Module):
    """A Transformer block without normalisation, from linear layers; with or without checkpoint."""

    input_shape = (4, 6)

    def __init__(self, checkpointed: bool = False):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(6, 6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 3)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        """Classify `[N, T, 6]`."""
        attend, feed = self.attend, self.feed
        if self.checkpointed:
            x = x + checkpoint(attend, x, use_reentrant=False)
            x = x + checkpoint(feed, x, use_reentrant=False)
        else:
            x = x + attend(x)
            x = x + feed(x)
        return self.head(x).mean(1)

    def attend(self, x: Tensor) -> Tensor:
        """Attend to all positions."""
        scores = self.query(x) @ self.key(x).mT / 6**0.5
        return self.out(scores.softmax(-1) @ self.value(x))

    def feed(self, x: Tensor) -> Tensor:
        """Compute at every position."""
        return self.down(F.gelu(self.up(x)))


class Tied(nn.Module):
    """A table that is the weight of the head too, and a linear layer used twice."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 6)
        self.twice = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        """Classify `[N, T, 6]`: the sign of a number chooses an entry."""
        hidden = self.table((x[..., 0] > 0).long())
        hidden = torch.tanh(self.twice(torch.tanh(self.twice(hidden))))
        return self.head(hidden).mean(1)


def sample(shape: Sequence[int], step: int, size: int = 13) -> Batch:
    """Draw the inputs and labels of one step."""
    generator = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn((size, *shape), generator=generator, dtype=torch.float64) + 0.2
    return inputs, inputs.flatten(1)[:, :3].argmax(1)


def train(
    net: nn.Module,
    batches: Callable[[int], list[Batch]],
    steps: int = 10,
    first: int = 0,
    **sgd: Any,
) -> list[float]:
    """Train with the mean over all micro-batches of a step; return the losses."""
    optimizer = torch.optim.SGD(net.parameters(), **{"lr": 0.05, **sgd})
    losses = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        parts = batches(step)
        total = 0.0
        for inputs, labels in parts:
            loss = F.cross_entropy(net(inputs), labels) / len(parts)
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        losses.append(total)
    return losses


def pair(model: nn.Module, config: Config = SETTING) -> tuple[nn.Module, nn.Module]:
    """Return a model and a reconstructed copy of it."""
    return model, sngd.reconstruct(copy.deepcopy(model), config)


@torch.no_grad()
def apart(model: nn.Module, net: nn.Module) -> float:
    """Return the largest relative difference of a parameter between a model and a network."""
    folded = sngd.fold(net).parameters()
    return max(
        float((p - q).norm() / q.norm().clamp(min=1e-3))
        for p, q in zip(model.parameters(), folded, strict=True)
    )
