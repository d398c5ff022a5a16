"""Which optimizers of torch are defined on `w'`: those whose path is the same under any root.

A root is given by the metric up to a rotation from the left, so what an optimizer does to `w` must
not depend on that. docs/which_optimizer.md has the table.
"""

import warnings

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from api import EVERY_STEP, apart, batch, mlp, train

pytestmark = pytest.mark.usefixtures("float64")
CONFIG = EVERY_STEP.replace(trust_radius=None, trust_share=None, damping_rel_trace=0.1)
NAMES = [
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
]
DEFINED = {"SGD", "ASGD", "Muon"}
"""As the page has it."""

ELSEWHERE = {"Optimizer", "SparseAdam"}
"""The base class, and one for sparse gradients, which a map by a root fills up."""


class NoBias(nn.Sequential):
    """Two matrices."""

    def __init__(self):
        super().__init__(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))


def path(name: str, root: str) -> nn.Module:
    """Train with an optimizer for a few steps."""
    torch.manual_seed(0)
    net = sngd.reconstruct(NoBias(), CONFIG.replace(root=root, unit_gain=name == "Muon"))
    optimizer = getattr(torch.optim, name)(net.parameters(), lr=0.01)
    for step in range(6):

        def closure(step=step):
            optimizer.zero_grad()
            loss = (3 * net(batch(step)) - 1).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    return net


@pytest.mark.parametrize("name", sorted(set(NAMES) - ELSEWHERE))
def test_a_path_depends_on_the_root_unless_the_optimizer_is_defined_there(name):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not natural gradient descent")
        gap = apart(path(name, "cholesky"), path(name, "symmetric"))
    # Muon makes matrices orthogonal in bfloat16, with a polynomial.
    assert (gap < (2e-3 if name == "Muon" else 1e-9)) == (name in DEFINED), gap


def orthogonal(matrix: Tensor) -> Tensor:
    """Return `U V^T` of `U S V^T`."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


class SpectralDescent(torch.optim.Muon):
    """Muon with an exact orthogonal factor in float64, on `w'` as it is."""

    @torch.no_grad()
    def step(self, closure=None):
        """Take a step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                buffer = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                parameter.sub_(group["lr"] * orthogonal(buffer))


def test_muon_on_the_prime_is_spectral_descent_where_inputs_are_white():
    torch.manual_seed(0)
    plain = NoBias()
    net = sngd.reconstruct(plain, CONFIG.replace(unit_gain=True))
    optimizer = SpectralDescent(net.parameters(), lr=0.01, momentum=0.8)
    momenta = [torch.zeros_like(p) for p in plain.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(7):
            roots = [layer.root for layer in sngd.fisher_layers(net).values()]
            (3 * plain(batch(step)) - 1).square().mean().backward()
            (3 * net(batch(step)) - 1).square().mean().backward()
            with torch.no_grad():
                for parameter, root, momentum in zip(
                    plain.parameters(), roots, momenta, strict=True
                ):
                    # Momentum is a velocity of w': it moves along as w' does.
                    momentum.lerp_(parameter.grad @ root.T @ root, 0.2)
                    white = momentum @ torch.linalg.inv(root)
                    parameter.sub_(0.01 * orthogonal(white) @ root)
                    parameter.grad = None
            optimizer.step()
            optimizer.zero_grad()
    assert apart(net, plain) < 1e-9


def test_muon_without_a_gain_of_one_is_warned_of():
    net = sngd.reconstruct(NoBias(), CONFIG)
    with pytest.warns(sngd.SngdWarning, match=r"Muon .*Config\.muon\(\)"):
        train(net, torch.optim.Muon(net.parameters(), lr=0.01), steps=1)


def test_muon_beside_adamw_parts_biases_and_says_nothing():
    net = sngd.reconstruct(mlp(), sngd.Config.muon())
    weights = [p for p in net.parameters() if p.dim() == 2]
    biases = [p for p in net.parameters() if p.dim() == 1]
    optimizers = [torch.optim.Muon(weights, lr=0.01), torch.optim.AdamW(biases, lr=0.01)]
    for step in range(4):
        for optimizer in optimizers:
            optimizer.zero_grad()
        net(batch(step)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    layers = sngd.fisher_layers(net).values()
    assert [layer.has_bias for layer in layers] == [False, False]
    for layer in layers:
        assert float(layer.root_buffers.squared_norm()) == pytest.approx(layer.size)
