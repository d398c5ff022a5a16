"""The records of a plan: what is reconstructed, what is not, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from torch import fx, nn

from sngd_compile.config import Config
from sngd_compile.rules import Rule, Use
from sngd_compile.runtime.fisher import FisherLayer


@dataclass(frozen=True)
class Skip:
    """A parameter that stays as it is, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Site:
    """A weight (and its bias) that is reconstructed.

    Args:
        module_name: Qualified name of the module; "" for the model itself.
        weight_name: Attribute name of the weight.
        bias_name: Attribute name of the bias that joins the local Fisher, or None.
        shape: Shape of the weight.
        dtype: Dtype of the weight.
        groups: Blocks of a grouped convolution, or None.
        rule: The rule that matched.
        config: Of this weight.
        uses: Each call that the weight enters.
    """

    module_name: str
    weight_name: str
    bias_name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    groups: int | None
    rule: Rule
    config: Config
    uses: tuple[tuple[fx.Node, Use], ...] = field(repr=False)

    @property
    def name(self) -> str:
        """Qualified name of the weight."""
        return qualified(self.module_name, self.weight_name)

    @property
    def parameter_names(self) -> list[str]:
        """Qualified names of the weight and of the bias that joined."""
        names = [self.weight_name] if self.bias_name is None else [self.weight_name, self.bias_name]
        return [qualified(self.module_name, name) for name in names]

    @property
    def fisher_name(self) -> str:
        """Attribute name of the Fisher layer."""
        return f"{self.weight_name}_fisher"

    @property
    def size(self) -> int:
        """D, weights of one output, bias included."""
        return prod(self.shape[1:]) + (self.bias_name is not None)

    @property
    def parameter_count(self) -> int:
        """Elements of the weight and of the bias."""
        return self.shape[0] * self.size

    def fisher_layer(self, device: torch.device) -> FisherLayer:
        """Make the Fisher layer on `device`; its statistics are float32 or wider."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        has_bias = self.bias_name is not None
        return FisherLayer(self.name, self.size, has_bias, self.groups, self.config, dtype, device)

    @property
    def state_bytes(self) -> int:
        """Memory of the Fisher layer's buffers."""
        layer = self.fisher_layer(torch.device("meta"))
        return sum(buffer.nbytes for buffer in layer.buffers())

    @property
    def step_work(self) -> int:
        """Multiply-adds that the root adds to a step at the most: one triangle each way."""
        return self.shape[0] * prod(self.shape[1:]) ** 2

    @property
    def refresh_work(self) -> int:
        """Multiply-adds of a refresh, about: a Cholesky factor, then w', g' and momentum moved."""
        blocks, width = self.groups or 1, prod(self.shape[1:])
        return blocks * width**3 // 3 + 3 * 3 * self.shape[0] * width**2 // 2


@dataclass(frozen=True)
class ModulePlan:
    """The plan of one module that owns parameters."""

    module_name: str
    module: nn.Module
    graph: fx.Graph | None
    sites: tuple[Site, ...]
    skips: tuple[Skip, ...]


@dataclass(frozen=True)
class Plan:
    """The plan of a model: one entry per module that owns parameters."""

    modules: tuple[ModulePlan, ...]

    @property
    def sites(self) -> list[Site]:
        """All that is reconstructed."""
        return [site for module in self.modules for site in module.sites]

    @property
    def skips(self) -> list[Skip]:
        """All that stays as it is."""
        return [skip for module in self.modules for skip in module.skips]


def qualified(module_name: str, name: str) -> str:
    """Join the name of a module ("" for the model itself) and of its attribute."""
    return f"{module_name}.{name}" if module_name else name
