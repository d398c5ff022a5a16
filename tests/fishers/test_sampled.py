"""`Config(output_gradients="sampled")`: B is the Fisher of the outputs' distribution."""

import pytest
import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config, sampling
from theorem.enumerated import ENUMERATED, show_all
from theorem.networks import MLP, ConvNet, Residual, batch

CONFIG = Config(fisher="kronecker", output_gradients="sampled", max_rows=None)
float64 = pytest.mark.usefixtures("float64")


def expected_factors(model: nn.Module, x: Tensor, name: str) -> dict[str, Tensor]:
    """Return the mean over samples of `sum J^T H J`, J the Jacobian by one row of a layer."""
    found: dict[str, list[Tensor]] = {}
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for key, module in modules.items():
        module.register_forward_hook(
            lambda _, __, y, key=key: found.setdefault(f"{key}.weight", []).append(y)
        )
    outputs, factors = model(x), {}
    for residual in ENUMERATED[name](outputs.detach()):
        for (key, each), module in zip(found.items(), modules.values(), strict=True):
            for g in torch.autograd.grad(outputs, each, residual, retain_graph=True):
                rows = g.movedim(1, -1) if isinstance(module, nn.Conv2d) else g
                groups = getattr(module, "groups", 1)
                grouped = rows.reshape(-1, groups, rows.shape[-1] // groups)
                moment = torch.einsum("ngo,ngp->gop", grouped, grouped) / len(x)
                factors[key] = factors.get(key, 0) + moment
    return factors


@float64
@pytest.mark.parametrize("network", [MLP, ConvNet, Residual])
@pytest.mark.parametrize("name", sorted(ENUMERATED))
def test_in_expectation_it_is_the_gauss_newton_matrix_of_the_outputs(network, name, monkeypatch):
    model = network()
    x, _ = batch(model, 0)
    net = sngd.reconstruct(model, CONFIG)
    for part in x.split((4, 9)):
        show_all(net, net(part), name, monkeypatch)
    layers = sngd.fisher_layers(sngd.refresh_(net))
    for key, expected in expected_factors(model, x, name).items():
        found = layers[key].output_side.factor.reshape(expected.shape)
        torch.testing.assert_close(3 * found, expected, rtol=1e-10, atol=1e-13)


@float64
@pytest.mark.parametrize("name", sorted(ENUMERATED))
def test_what_is_drawn_has_the_fisher_as_second_moment(name):
    generator, count = torch.Generator().manual_seed(3), 40_000
    outputs = torch.tensor([1.5, -0.5, 0.3])
    drawn = sampling.RESIDUALS[name](outputs.expand(count, 3), generator)
    exact = sum(torch.outer(r, r) for r in ENUMERATED[name](outputs))
    products = drawn[:, :, None] * drawn[:, None, :]
    assert ((products.mean(0) - exact).abs() <= 5 * products.std(0) / count**0.5 + 1e-12).all()
    assert (drawn.mean(0).abs() <= 5 * drawn.std(0) / count**0.5).all()


def test_a_class_of_no_probability_is_never_drawn():
    logits = torch.tensor([-torch.inf, 2.0, -torch.inf]).expand(5000, 3)
    residual = sampling.RESIDUALS["categorical"](logits, torch.Generator().manual_seed(0))
    assert not residual.any()


def factors_after(scale: float, seed: int = 0, step: int = 0) -> list[Tensor]:
    """Observe one batch with a loss of this scale."""
    torch.manual_seed(1)
    net = sngd.reconstruct(MLP(), CONFIG.replace(seed=seed, observe_every=1))
    layers = sngd.fisher_layers(net)
    for layer in layers.values():
        layer.schedule.restore(step, 0)
    x, y = batch(net, 0)
    outputs = net(x)
    sngd.sample_fisher_(net, outputs, distribution="categorical")
    (scale * F.cross_entropy(outputs, y)).backward()
    sngd.refresh_(net)
    return [layer.output_side.factor for layer in layers.values()]


@float64
def test_the_loss_does_not_enter_the_seed_and_the_step_do():
    first, scaled, other, later = (
        factors_after(1.0),
        factors_after(65536.0),
        factors_after(1.0, seed=1),
        factors_after(1.0, step=1),
    )
    for one, same, *others in zip(first, scaled, other, later, strict=True):
        assert one.any()
        assert torch.equal(one, same)
        assert not any(torch.allclose(one, different) for different in others)


@float64
def test_nothing_else_changes():
    model = MLP()
    nets = [sngd.reconstruct(model, CONFIG) for _ in "ab"]
    x, y = batch(model, 0)
    before = torch.get_rng_state()
    for net, sampled in zip(nets, (True, False), strict=True):
        net.zero_grad()
        outputs = net(x)
        if sampled:
            sngd.sample_fisher_(net, outputs, distribution="categorical")
        assert all(p.grad is None for p in net.parameters())
        sums = [layer.output_side.sum.clone() for layer in sngd.fisher_layers(net).values()]
        F.cross_entropy(outputs, y).backward()
        for layer, kept in zip(sngd.fisher_layers(net).values(), sums, strict=True):
            assert torch.equal(layer.output_side.sum, kept)
            assert bool(kept.any()) == sampled
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_step_that_is_not_observed_draws_nothing(monkeypatch):
    net = sngd.reconstruct(MLP(), CONFIG.replace(observe_every=2, early_observations=()))
    drawn, original = [], sampling.RESIDUALS["categorical"]
    monkeypatch.setitem(
        sampling.RESIDUALS, "categorical", lambda *a: drawn.append(1) or original(*a)
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    counts = []
    for number in range(4):
        x, y = batch(net, number)
        outputs = net(x.float())
        sngd.sample_fisher_(net, outputs, distribution="categorical")
        F.cross_entropy(outputs, y).backward()
        optimizer.step()
        counts.append(len(drawn))
    assert counts == [1, 1, 2, 2]


def test_who_never_calls_it_is_told_once_by_name():
    net = sngd.reconstruct(nn.Linear(4, 3), CONFIG.replace(refresh_every=1))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for number in range(3):
        net(torch.randn(6, 4)).square().mean().backward()
        if number:
            optimizer.step()
            continue
        with pytest.warns(sngd.SngdWarning, match=r"weight: no output gradient.*sample_fisher_"):
            optimizer.step()
    assert torch.equal(sngd.fisher_layers(net)["weight"].output_root, torch.eye(3))
    assert "no output gradient observed in 3 steps" in str(sngd.explain(net))


def test_outputs_that_are_not_finite_leave_nothing_behind():
    net = sngd.reconstruct(nn.Linear(4, 3), CONFIG)
    outputs = net(torch.full((2, 4), 1e38)) * 1e10
    sngd.sample_fisher_(net, outputs, distribution="categorical")
    side = sngd.fisher_layers(net)["weight"].output_side
    assert not side.sum.any()
    assert not side.tally.any()


@float64
@torch._functorch.config.patch(donated_buffer=False)
def test_a_compiled_network_is_sampled_as_an_eager_one():
    model, factors = ConvNet(), []
    x, _ = batch(model, 0)
    for compiled in (False, True):
        net = sngd.reconstruct(model, CONFIG.replace(fisher="kronecker"))
        run = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
        outputs = run(x)
        sngd.sample_fisher_(run, outputs, distribution="categorical")
        outputs.sum().backward()
        layers = sngd.fisher_layers(sngd.refresh_(net))
        factors.append([layer.output_side.factor for layer in layers.values()])
    for one, other in zip(*factors, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_a_backward_pass_that_runs_once_says_what_to_set():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise RuntimeError("This backward function was compiled with non-empty donated buffers")

    net = sngd.reconstruct(nn.Linear(4, 3), CONFIG)
    outputs = Once.apply(net(torch.randn(2, 4)))
    with pytest.raises(sngd.ModelError, match="donated_buffer = False before the first step"):
        sngd.sample_fisher_(net, outputs, distribution="gaussian")


def test_a_wrong_call_says_what_is_wrong():
    net, x = sngd.reconstruct(nn.Linear(4, 3), CONFIG), torch.randn(2, 4)
    with pytest.raises(sngd.ConfigError, match="'poisson': expected one of categorical"):
        sngd.sample_fisher_(net, net(x), distribution="poisson")
    for outputs in (net(x).detach(), net(x).sum()):
        with pytest.raises(sngd.ModelError, match=r"outputs of shape .*before any reduction"):
            sngd.sample_fisher_(net, outputs, distribution="gaussian")
    with pytest.raises(sngd.ModelError, match="outputs of type dict: expected a tensor"):
        sngd.sample_fisher_(net, {"logits": net(x)}, distribution="categorical")
    empirical = sngd.reconstruct(nn.Linear(4, 3), CONFIG.replace(output_gradients="empirical"))
    with pytest.raises(sngd.ConfigError, match="no layer of this network wants sampled"):
        sngd.sample_fisher_(empirical, empirical(x), distribution="gaussian")
    with pytest.raises(sngd.ConfigError, match="fisher = 'shared': expected kronecker"):
        Config(output_gradients="sampled")
