"""What a law is asked of: a case with one kind of root, and the networks that its laws share."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import sngd_compile as sngd
from laws.case import Case
from laws.recorder import RecordedUse, recorded_uses
from sngd_compile import Config

RELATIVE, ABSOLUTE = 1e-2, 0.03


def configuration(root: str, **fields: Any) -> Config:
    """Observe every row of every step; renew the root after steps 1, 3 and 5."""
    given = {
        "over_outputs": "sum",
        "trust_radius": None,
        "trust_share": None,
        "refresh_every": 5,
        "early_refreshes": (1, 3),
        "observe_every": 1,
        "damping_rel_trace": RELATIVE,
        "damping_abs": ABSOLUTE,
        "max_rows": None,
    }
    return Config(root=root, **given | fields)


def loss(outputs: Tensor) -> Tensor:
    """Weigh every output differently."""
    weights = torch.linspace(-1.0, 1.5, outputs.numel(), dtype=outputs.dtype)
    return (outputs.flatten().sin() * weights).mean()


class Subject:
    """One case with one kind of root.

    Tracing a layer and training it take most of a law's time: what several laws ask about is made
    once. A law changes `observed` and `uses` in a copy only; it may train what `trained` returns.
    """

    def __init__(self, case: Case, root: str):
        self.case, self.root = case, root
        self.steps = 0

    def reconstructed(self) -> nn.Module:
        """Reconstruct the layer anew."""
        return sngd.reconstruct(self.case.build(), configuration(self.root, **self.case.fields))

    @cached_property
    def observed(self) -> nn.Module:
        """The layer, its roots renewed from one batch."""
        net = self.reconstructed()
        outputs = net(self.case.input())
        if self.case.has_output_side:
            loss(outputs).backward()
            net.zero_grad()
        return sngd.refresh_(net)

    @cached_property
    def uses(self) -> list[RecordedUse]:
        """The uses of the weight in one observed step."""
        return recorded_uses(self.case)

    def trained(self, steps: int = 4) -> tuple[nn.Module, torch.optim.SGD]:
        """Train the layer up to so many steps, with momentum and refreshes on the way."""
        net, optimizer = self._in_training
        for step in range(self.steps, steps):
            optimizer.zero_grad()
            loss(net(self.case.input(step))).backward()
            optimizer.step()
            self.steps += 1
        return net, optimizer

    @cached_property
    def _in_training(self) -> tuple[nn.Module, torch.optim.SGD]:
        net = self.reconstructed()
        return net, torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
