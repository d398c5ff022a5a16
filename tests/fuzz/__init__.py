"""Hostile trainings, drawn at random: networks, local Fishers, dtypes, batches, optimizers."""

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from hypothesis import event
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import sngd_compile as sngd
from random_networks import LAYERS, WIDTH, Network, chained, networks
from sngd_compile import Config
from sngd_compile.registry import KINDS, ROOTS

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
BATCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "usual": lambda x: x,
    "constant": torch.ones_like,
    "zeros": torch.zeros_like,
    "huge": lambda x: x * 1e20,
    "large": lambda x: x * 1e5,
    "tiny": lambda x: x * 1e-20,
    "one outlier": lambda x: torch.cat([x[:1] * 1e4, x[1:]]),
    "empty": lambda x: x[:0],
    "one sample": lambda x: x[:1],
    "not a number": lambda x: x.where(x < x.max(), float("nan")),
    "repeated": lambda x: x[:1].expand_as(x),
}


def halves(model: nn.Module) -> list[dict]:
    """Decay all but the biases."""
    named = list(model.named_parameters())
    weights = [p for name, p in named if "bias" not in name]
    biases = [p for name, p in named if "bias" in name]
    return [{"params": weights, "weight_decay": 0.1}, {"params": biases}]


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: SGD(model.parameters(), 0.02),
    "momentum": lambda model: SGD(model.parameters(), 0.02, momentum=0.9),
    "nesterov": lambda model: SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True),
    "decay": lambda model: SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=0.1),
    "no decay on biases": lambda model: SGD(halves(model), 0.02, momentum=0.9),
    "adamw": lambda model: AdamW(model.parameters(), 1e-3),
}


@dataclass(frozen=True)
class Training:
    """All that a run depends on.

    Args:
        network: Makes the model, after a linear layer.
        config: The local Fishers.
        dtype: Of weights and inputs.
        batches: One for each step.
        optimizer: Its name.
        freezes: Whether every second parameter is frozen.
        clips: Whether gradients are clipped.
        micro: Batches that one step accumulates.
        evaluates: Whether the network is evaluated between steps.
    """

    network: Network
    config: Config
    dtype: str
    batches: list[str]
    optimizer: str
    freezes: bool = False
    clips: bool = True
    micro: int = 1
    evaluates: bool = False

    def model(self) -> nn.Module:
        """Make the plain model, alike each time."""
        torch.manual_seed(3)
        return chained([LAYERS["linear"], self.network])().to(DTYPES[self.dtype])

    def start(self, model: nn.Module | None = None) -> tuple[nn.Module, Optimizer]:
        """Make network and optimizer; of the plain model where one is given."""
        net = sngd.reconstruct(self.model(), self.config) if model is None else model
        for number, parameter in enumerate(net.parameters()):
            parameter.requires_grad_(not (self.freezes and number % 2))
        return net, OPTIMIZERS[self.optimizer](net)

    def inputs(self, number: int, kind: str = "usual") -> Tensor:
        """Draw the batch of a step."""
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(4, 3, WIDTH, generator=generator) + 0.2
        return BATCHES[kind](x.to(DTYPES[self.dtype]))

    def stream(self, first: int = 0) -> Iterator[Tensor]:
        """Draw the batches from a step on."""
        for number, kind in list(enumerate(self.batches))[first:]:
            yield self.inputs(number, kind)

    def step(self, net: nn.Module, optimizer: Optimizer, x: Tensor) -> float:
        """Take a step, and return the loss before it."""
        if self.evaluates:
            with torch.no_grad():
                net.eval()(x)
            net.train()
        optimizer.zero_grad()
        total = self.backward(net, x)
        if self.clips:
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return total

    def backward(self, net: nn.Module, x: Tensor) -> float:
        """Add up the gradients of a batch, in parts, and return its loss."""
        parts = x.chunk(self.micro) if len(x) else [x]
        losses = [loss(net, part) / len(parts) for part in parts]
        for one in losses:
            one.backward()
        return float(sum(one.detach() for one in losses))


def loss(net: nn.Module, x: Tensor) -> Tensor:
    """Fit a wave; a loss of nothing is zero."""
    outputs = net(x).double()
    wave = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).sin().view_as(outputs)
    return (outputs - wave).square().sum() / max(1, outputs.numel())


def by_state(net: nn.Module, optimizer: Optimizer, training: Training) -> tuple:
    """Load the states, from a file, into fresh objects."""
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    resumed = training.start()
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    return resumed


def by_pickle(net: nn.Module, optimizer: Optimizer, training: Training) -> tuple:
    """Write both objects to a file and read them."""
    file = io.BytesIO()
    torch.save((net, optimizer), file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_copy(net: nn.Module, optimizer: Optimizer, training: Training) -> tuple:
    """Copy both objects."""
    return copy.deepcopy((net, optimizer))


WAYS = {"state": by_state, "pickle": by_pickle, "copy": by_copy}

configs = st.builds(
    Config,
    fisher=st.sampled_from(sorted(KINDS)),
    root=st.sampled_from(sorted(ROOTS)),
    refresh_every=st.integers(1, 4),
    early_refreshes=st.sampled_from([(), (1,), (1, 3)]),
    observe_every=st.integers(1, 3),
    early_observations=st.sampled_from([(), (1,)]),
    ema_decay=st.sampled_from([0.95, 0.0]),
    damping_rel_trace=st.sampled_from([1e-3, 1e-1, 0.0]),
    damping_abs=st.sampled_from([1e-7, 0.1, 0.0]),
    max_rows=st.sampled_from(["auto", None, 1, 5]),
    over_outputs=st.sampled_from(["sum", "mean"]),
    block_size=st.sampled_from([128, 3, 1]),
    activation=st.sampled_from(["auto", "tanh", "relu"]),
    memory_budget=st.sampled_from([2**31, 2**31, 2**31, 3000, 0]),
    step_budget=st.sampled_from([0.25, 0.01, 1e9]),
    rank=st.sampled_from([48, 48, None, 1, 2]),
)


def trainings(**given: st.SearchStrategy) -> st.SearchStrategy[Training]:
    """Draw any training; what is given is drawn from there."""
    drawn = {
        "network": networks,
        "config": configs,
        "dtype": st.sampled_from(sorted(DTYPES, reverse=True)),
        "batches": st.lists(st.sampled_from(list(BATCHES)), min_size=2, max_size=6),
        "optimizer": st.sampled_from(list(OPTIMIZERS)),
        "freezes": st.booleans(),
        "clips": st.booleans(),
        "micro": st.integers(1, 2),
        "evaluates": st.booleans(),
    }
    return st.builds(Training, **drawn | given)


def note_kinds(net: nn.Module) -> None:
    """Count the layers and kinds that a run has met, for --hypothesis-show-statistics."""
    for name, fisher in sngd.fisher_layers(net).items():
        module = net.get_submodule(name.rpartition(".")[0])
        event(f"{type(module).__name__}, {fisher.kind}")
