"""What is verified: copies of a network, and runs of them that all begin alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn

from sngd_compile.config import Config
from sngd_compile.errors import ModelError, first_line
from sngd_compile.explain import distinct_sites, explain, fisher_layers
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fold import fold_, refresh_
from sngd_compile.modules.copying import copied
from sngd_compile.modules.reconstructed import reconstructed_modules
from sngd_compile.plan.records import Site, qualified
from sngd_compile.reconstruct import reconstruct
from sngd_compile.torch_private import tree_leaves
from sngd_compile.training.refresh import LocalSite
from sngd_compile.verification.outputs import distance, floating_in
from sngd_compile.verification.randomness import Generators

NEVER = 2**60
"""Steps that no run takes."""

ROUNDINGS = 2**13
"""Multiple of the rounding of the coarsest dtype that errors of whole networks may have."""

LARGEST_BOUND = 0.1
"""Beyond it an error is none of rounding, in bfloat16 too."""


class Subject:
    """A plain model or a reconstructed network, with a batch and a loss.

    Nothing that is given is changed or run: copies are, each from the same state of the random
    generators, so that one may be compared with another.

    Args:
        given: The model or the network.
        batch: Positional and named arguments of its forward.
        loss: Output to scalar.
        config: Of a plain model.
        generators: What every run begins with.
    """

    def __init__(
        self,
        given: nn.Module,
        batch: tuple[Sequence[Any], Mapping[str, Any]],
        loss: Callable[[Any], Tensor],
        config: Config | None,
        generators: Generators,
    ) -> None:
        """Copy the batch, make the plain model and the network."""
        self.batch, self.loss, self.generators = _detached(batch), loss, generators
        own = copy_of(given)
        self.is_network = bool(reconstructed_modules(own))
        self.plain = fold_(copy_of(given)) if self.is_network else own
        self.net = own if self.is_network else reconstruct(own, config)
        self.config = config

    @property
    def is_empty(self) -> bool:
        """Whether a tensor of the batch has no elements."""
        return any(tensor.numel() == 0 for tensor in self._tensors())

    @cached_property
    def is_finite(self) -> bool:
        """Whether all numbers of the batch are."""
        return all(bool(tensor.isfinite().all()) for tensor in self._tensors())

    def _tensors(self) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(self.batch) if isinstance(leaf, Tensor)]

    def distance(self, found: list[Tensor], expected: list[Tensor]) -> float:
        """Compare outputs; of a batch that is not finite, where they are."""
        # A root of zeros and ones makes NaN of an infinite input, of which tanh would make 1.
        return distance(found, expected, where_finite=not self.is_finite)

    @cached_property
    def layers(self) -> dict[str, FisherLayer]:
        """The Fisher layers of the network by the first name of their weight."""
        return {name: site.fisher for name, site in sites_by_name(self.net).items()}

    @cached_property
    def sites(self) -> dict[str, Site]:
        """The plan of each weight, by its name."""
        return {site.name: site for site in explain(self.net).sites}

    @cached_property
    def bound(self) -> float:
        """The largest relative error that the rounding of the coarsest dtype explains."""
        dtypes = {t.dtype for t in (*self.plain.parameters(), *self.first)}
        devices = {parameter.device.type for parameter in self.plain.parameters()}
        dtypes |= {torch.get_autocast_dtype(d) for d in devices if torch.is_autocast_enabled(d)}
        coarsest = max((torch.finfo(t).eps for t in dtypes if t.is_floating_point), default=2e-16)
        return min(ROUNDINGS * coarsest, LARGEST_BOUND)

    @cached_property
    def first(self) -> list[Tensor]:
        """What the plain model as it is returns.

        Raises:
            ModelError: It does not take the batch, or the loss makes no scalar of the output.
        """
        try:
            output = self.forward(copy_of(self.plain))
            loss = self.loss(output)
        except Exception as error:  # whatever the user's own forward raises
            raise ModelError(
                f"{type(self.plain).__name__} does not run on this batch ({first_line(error)}), so "
                "no law can be checked: verify(net, *inputs, loss=..., **kwargs) calls "
                "net(*inputs, **kwargs) in its present mode, and loss, a function of the output"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = list(getattr(loss, "shape", []))
            raise ModelError(
                f"loss returned {type(loss).__name__} {shape}, so nothing can be differentiated: "
                "give verify a loss that makes a scalar tensor of the output"
            )
        return floating_in(output)

    @cached_property
    def untrainable(self) -> str:
        """Say why the plain model does not run in train mode on this batch; "" where it does."""
        try:
            self.train_on_batch(in_training(copy_of(self.plain)))
        except Exception as error:  # as of a BatchNorm in eval mode that has one sample
            return f"the plain model does not train on this batch ({first_line(error)})"
        return ""

    def forward(self, model: nn.Module) -> Any:
        """Run a model, in the mode in which it is, from the first state of the generators."""
        args, kwargs = _detached(self.batch)
        self.generators.restore()
        return model(*args, **kwargs)

    def train_on_batch(self, model: nn.Module) -> None:
        """Run a model and the backward pass of its loss, if that depends on a parameter."""
        loss = self.loss(self.forward(model))
        if loss.requires_grad:
            loss.backward()

    def outputs(self, model: nn.Module, training: bool | None = None) -> list[Tensor]:
        """Return what a copy of a model computes, in a mode or its own; the model stays."""
        made = copy_of(model)
        return floating_in(self.forward(made if training is None else made.train(training)))

    @cached_property
    def observed(self) -> nn.Module:
        """The network after one training pass, with the statistics of that alone; not refreshed."""
        net = in_training(copy_of(self.net))
        begin_statistics_(net)
        self.train_on_batch(net)
        for parameter in net.parameters():
            parameter.grad = None
        return net

    @cached_property
    def refreshed(self) -> nn.Module:
        """The same network, its roots renewed from that pass."""
        return refresh_(copy_of(self.observed))

    @cached_property
    def renewed(self) -> list[str]:
        """Names of the weights whose roots the refresh has changed."""
        before, after = sites_by_name(self.observed), sites_by_name(self.refreshed)
        return [
            name
            for name, site in after.items()
            if any(
                not torch.equal(new, old)
                for new, old in zip(
                    site.fisher.root_buffers.buffers(),
                    before[name].fisher.root_buffers.buffers(),
                    strict=True,
                )
            )
        ]

    def fresh(self) -> nn.Module:
        """Reconstruct a copy of the plain model as the network was, with the same settings."""
        plain = in_training(copy_of(self.plain))
        if not self.is_network:
            net = reconstruct(plain, self.config, inplace=True)
            configure_(net)
            return net
        trained = {name: p.requires_grad for name, p in plain.named_parameters()}
        chosen: dict[str, Config | None] = {escape(name): None for name in trained}
        for name, module in reconstructed_modules(self.net).items():
            for site in module.local_sites():
                for own in filter(None, (site.weight_name, site.bias_name)):
                    chosen[escape(qualified(name, own))] = site.fisher.config
                    # A weight that was frozen after `reconstruct` has its Fisher layer.
                    plain.get_parameter(qualified(name, own)).requires_grad_()
        net = reconstruct(plain, overrides=chosen, inplace=True)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(trained[name])
        configure_(net)
        return net


def copy_of(model: nn.Module) -> nn.Module:
    """Return a deep copy without gradients, of which the original does not know."""
    # Results of other passes are part of no copy; the parameters' own gradients stay behind.
    made = copied(model, "call verify before the forward pass")
    for parameter in made.parameters():
        parameter.grad = None
    for layer in fisher_layers(made).values():
        layer.ties.stand_alone(layer)
    return made


def in_training(model: nn.Module) -> nn.Module:
    """Put a model that is in eval mode as a whole into train mode."""
    return model if model.training else model.train()


def begin_statistics_(net: nn.Module) -> None:
    """Forget what was observed, keep the roots, and observe all rows of the next pass."""
    configure_(net)
    for layer in fisher_layers(net).values():
        layer.forget_statistics_()


def configure_(net: nn.Module) -> None:
    """Let layers observe every row of every pass, and refresh when they are told to."""
    every = {"refresh_every": NEVER, "early_refreshes": (), "observe_every": 1, "max_rows": None}
    for layer in fisher_layers(net).values():
        layer.config = layer.config.replace(**every)
        layer.schedule.configure_(layer.config, layer.size, 0, 0)


def sites_by_name(net: nn.Module) -> dict[str, LocalSite]:
    """Map the first name of each weight to its site, each Fisher layer once."""
    return {n: site for n, site in distinct_sites(net).items() if isinstance(site, LocalSite)}


def _detached(batch: Any) -> Any:
    """Copy a batch; tensors that hang on a graph are cut off."""
    cut = {
        id(leaf): leaf.detach().clone().requires_grad_(leaf.requires_grad)
        for leaf in tree_leaves(batch)
        if isinstance(leaf, Tensor)
    }
    try:
        return copy.deepcopy(batch, dict(cut))
    except Exception as error:  # whatever the user's own types raise on being copied
        raise ModelError(
            f"the inputs cannot be copied ({error}), and verify runs the network several times: "
            "give tensors, or objects that copy.deepcopy takes"
        ) from error
