"""`Config(fisher="eigen")`: exact damping of the product, scales, flaws, and where it shows."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config

CONFIG = Config(fisher="eigen", max_rows=None)
float64 = pytest.mark.usefixtures("float64")


def linear_net() -> nn.Sequential:
    """Read `[N, 5]`; the activation has a slope everywhere."""
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def observed(model: nn.Module, x: Tensor, config: Config, scale: float = 1.0) -> nn.Module:
    """Reconstruct a classifier and renew its roots from one batch and a mean loss."""
    net = sngd.reconstruct(model, config)
    (scale * F.cross_entropy(net(x), torch.arange(len(x)) % 3)).backward()
    return sngd.refresh_(net)


@pytest.mark.parametrize("scale", [1e-12, 1e-18, 1e9])
def test_the_scale_of_the_loss_changes_the_gain_by_its_inverse(scale):
    model, x = linear_net(), torch.randn(30, 5)
    layers = [sngd.fisher_layers(observed(model, x, CONFIG, s)) for s in (1.0, scale)]
    for name, one in layers[0].items():
        gains = [layer.gain.double() for layer in (one, layers[1][name])]
        assert one.gain.dtype == torch.float32
        torch.testing.assert_close(gains[1] * scale, gains[0], rtol=1e-3, atol=0.0)


@float64
def test_on_one_input_the_step_is_that_of_the_damped_gauss_newton_matrix():
    model = nn.Sequential(*(nn.Linear(i, o, bias=False) for i, o in ((4, 5), (5, 3), (3, 2))))
    x = torch.randn(1, 4).expand(2, 4)
    net = sngd.reconstruct(model, CONFIG.replace(damping_rel_trace=1e-2))
    residuals = 2**0.5 * torch.eye(2)  # their outer products have the identity as mean
    outputs = net(x)
    ((outputs - outputs.detach() + residuals).square().sum(1) / 2).mean().backward()
    sngd.refresh_(net).zero_grad()
    net(x).sum().backward()
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    model(x).sum().backward()
    stepped = sngd.fold(net)
    for index in range(3):
        weight = model[index].weight

        def output(changed: Tensor, index: int = index) -> Tensor:
            return torch.func.functional_call(model, {f"{index}.weight": changed}, x[:1]).flatten()

        jacobian = torch.func.jacrev(output)(weight.detach()).flatten(1)
        matrix = jacobian.T @ jacobian
        damped = matrix + 1e-2 * matrix.trace() * torch.eye(len(matrix))
        expected = weight - torch.linalg.solve(damped, weight.grad.flatten()).view_as(weight)
        torch.testing.assert_close(stepped[index].weight, expected, rtol=1e-10, atol=1e-12)


def test_the_plan_and_the_layer_show_it():
    model = linear_net()
    text = str(sngd.explain(model, CONFIG))
    assert "eigen 6" in text
    assert "notes on" not in text
    fisher = sngd.fisher_layers(sngd.reconstruct(model, CONFIG))["0.weight"]
    assert "eigen" in repr(fisher)
    for found, size in ((fisher.root, 6), (fisher.output_root, 7)):
        assert torch.equal(found, torch.eye(size))
    assert torch.equal(fisher.gain, torch.ones(7, 6))
    other = sngd.reconstruct(model, CONFIG.replace(fisher="kronecker"))
    assert sngd.fisher_layers(other)["0.weight"].gain is None


def test_the_memory_in_the_plan_is_that_of_the_buffers():
    model = nn.Sequential(nn.Linear(5, 7), nn.Unflatten(1, (1, 7)), nn.Conv1d(1, 3, 2))
    net = sngd.reconstruct(model, CONFIG)
    for site, layer in zip(
        sngd.explain(model, CONFIG).sites, sngd.fisher_layers(net).values(), strict=True
    ):
        assert site.state_bytes == sum(buffer.nbytes for buffer in layer.buffers())


@float64
def test_without_a_gradient_the_root_stays_the_identity():
    net = sngd.reconstruct(linear_net(), CONFIG)
    (0 * net(torch.randn(8, 5)).sum()).backward()
    sngd.refresh_(net)
    for fisher in sngd.fisher_layers(net).values():
        assert torch.equal(fisher.gain, torch.ones_like(fisher.gain))


def test_a_singular_product_without_damping_keeps_the_root_and_says_so():
    net = sngd.reconstruct(nn.Linear(5, 3), CONFIG.replace(damping_rel_trace=0.0))
    net(torch.ones(4, 5)).sum().backward()
    with pytest.warns(sngd.SngdWarning, match="weight: its damped factor is not positive definite"):
        sngd.refresh_(net)
    assert torch.equal(sngd.fisher_layers(net)["weight"].gain, torch.ones(3, 6))


def test_many_equal_eigenvalues_are_no_difficulty_in_float32():
    net = sngd.reconstruct(nn.Linear(200, 3), CONFIG)
    x = torch.zeros(40, 200)
    x[:, :2] = torch.randn(40, 2)
    net(x).square().mean().backward()
    before = net(x)
    sngd.refresh_(net)
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-5)
    assert sngd.fisher_layers(net)["weight"].gain.isfinite().all()
