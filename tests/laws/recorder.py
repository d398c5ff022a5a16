"""What reaches a weight: the layer run node by node, and its rule asked about every use."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

import sngd_compile as sngd
from laws.case import Case
from sngd_compile import Rule


@dataclass(frozen=True)
class RecordedUse:
    """One use of a weight with the activations it meets."""

    rule: Rule
    samples: list[Tensor]
    geometry: tuple[int, ...]

    @property
    def rows(self) -> Tensor:
        """The rule's rows."""
        return self.rule.rows(self.samples, self.geometry)

    def add_second_moment(self, bias: bool, out: Tensor) -> Tensor:
        """Return `out` with the rule's sum of outer products added."""
        self.rule.second_moment(self.samples, self.geometry, bias, out)
        return out


class Recorder(fx.Interpreter):
    """Run a captured graph and keep the value of every node."""

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        self.values[n] = super().run_node(n)
        return self.values[n]


@torch.no_grad()
def recorded_uses(case: Case) -> list[RecordedUse]:
    """Run a case's layer on its input and return the uses of its weight."""
    model = case.build()
    site = next(site for site in sngd.explain(model).sites if site.weight_name == case.weight)
    recorder = Recorder(model, graph=site.uses[0][0].graph)
    recorder.values = {}
    recorder.run(case.input())
    uses = []
    for _, use in site.uses:
        inputs = [recorder.values[node] for node in use.inputs]
        samples = site.rule.samples(inputs, use.geometry)
        uses.append(RecordedUse(site.rule, samples, use.geometry))
    return uses
