"""Every public name as a user's typed code has it: checked by mypy and pyright, and run.

Part of `make release-check`, from a folder that has nothing of the repository.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import assert_type

import torch
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config, Rule, SngdWarning
from sngd_compile.layout import Layout
from sngd_compile.rules import Call, Use

EVERY_ERROR = (
    sngd.AlreadyReconstructedError,
    sngd.ConfigError,
    sngd.MissingExtraError,
    sngd.ModelError,
    sngd.PlanError,
    sngd.RuleError,
)


@sngd.register_rule
class OneStep(Rule):
    """`torch.conv_tbc` with a window of one step."""

    name = "one step"
    targets = (torch.conv_tbc,)
    signature = inspect.signature(lambda input, weight, bias, pad=0: ...)

    def match(self, call: Call) -> Use | str:
        """Take the weight alone."""
        weight = call.parameter("weight")
        if weight is None or len(weight) != 1:
            return "the window is wider than one step"
        layout = Layout.transposed(weight[0].shape)
        return Use(call.arguments["weight"], (call.arguments["input"],), layout)

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return the rows as they are."""
        return inputs[0]


class Steps(nn.Module):
    """What the rule is for."""

    def __init__(self) -> None:
        """Draw the weight."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 4, 3))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[T, B, 3]`."""
        return torch.conv_tbc(x, self.weight, self.bias)


def train(net: nn.Sequential, steps: int = 3) -> None:
    """Take a few steps."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(9, 5)).square().mean().backward()
        optimizer.step()


def look(net: nn.Sequential) -> None:
    """Ask for all that can be asked for."""
    found = sngd.explain(net)
    assert_type(found.work_per_step, float)
    print(found.text(by="state"))
    with TemporaryDirectory() as folder:
        assert_type(found.to_html(Path(folder, "report.html")), Path)
    assert_type(sngd.metrics(net), dict[str, float])
    assert_type(sngd.graph(net, "0").python(), str)
    assert_type([record.nodes_after for record in sngd.passes(net)], list[int])
    for fisher in sngd.fisher_layers(net).values():
        assert_type(fisher.metric(), Tensor)


def main() -> None:
    """Use every public name."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    config = Config(refresh_every=2, observe_every=1)
    net = sngd.reconstruct(model, config, overrides={"2.*": config.replace(rank=None)})
    assert_type(net, nn.Sequential)
    average = torch.optim.swa_utils.AveragedModel(net)
    sngd.follow(average, net)
    train(net)
    look(net)
    assert_type(sngd.refresh_(net), nn.Sequential)
    assert_type(sngd.verify(net, torch.randn(9, 5)).ok, bool)
    plain = assert_type(sngd.fold(net), nn.Sequential)
    plain.load_state_dict(sngd.fold_checkpoint(net.state_dict()))
    assert_type(sngd.fold_(net), nn.Sequential)
    compiled = torch.compile(plain, backend="sngd", options={"inner_backend": "eager"})
    assert isinstance(compiled, nn.Module)  # torch calls it a function
    compiled(torch.randn(9, 5)).sum().backward()
    sngd.load_state_dict(compiled, sngd.state_dict(compiled))
    assert [site.rule for site in sngd.explain(Steps()).sites] == ["one step"]
    assert all(issubclass(error, sngd.SngdError) for error in EVERY_ERROR)
    assert issubclass(SngdWarning, UserWarning)


if __name__ == "__main__":
    main()
