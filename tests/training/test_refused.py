"""A new root that cannot express the present weights is refused, and all stays as it was."""

import warnings

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from sngd_compile import Config

KINDS = ["shared", "sketch", "block", "kronecker", "unit", "diagonal"]
SCALES = (1.0, 1e3, 1e5, 1e7, 1.0, 1e-3)


def two_layers(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Conv1d(1, 3, 4)).to(dtype)


def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net[1](net[0](x)[:, None])


@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_refresh_keeps_the_function_or_is_refused_by_name(kind, root, dtype):
    config = Config(fisher=kind, root=root, damping_rel_trace=0.0, damping_abs=1e-3)
    net = sngd.reconstruct(two_layers(dtype), config)
    x = torch.randn(33, 5).to(dtype)
    # As far as the guard's bound allows for both layers.
    allowed = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.2}[dtype]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for scale in SCALES:
            run(net, x * scale).float().square().mean().backward()
            before = run(net, x).detach().double()
            sngd.refresh_(net)
            change = (run(net, x).detach().double() - before).norm() / before.norm()
            assert change < allowed
    texts = [str(w.message) for w in caught if "refresh would have changed" in str(w.message)]
    assert len(texts) <= 2  # once for a layer, those of one refresh together
    assert all("weight" in text and "damping" in text for text in texts)


def trained(config: Config) -> tuple[nn.Module, torch.optim.Optimizer]:
    net = sngd.reconstruct(two_layers(torch.float32), config)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-9, momentum=0.9)
    for scale in (1.0, 2.0, 1e6):
        optimizer.zero_grad()
        run(net, torch.randn(33, 5) * scale).sum().backward()
        optimizer.step()
    return net, optimizer


def test_what_is_refused_leaves_root_weights_momentum_and_damping():
    config = Config(
        fisher="shared",
        damping_rel_trace=0.0,
        damping_abs=1e-3,
        observe_every=1,
        early_refreshes=(1,),
        refresh_every=1000,
    )
    net, optimizer = trained(config)
    layer = sngd.fisher_layers(net)["0.weight"]

    def held() -> list[torch.Tensor]:
        momenta = [s["momentum_buffer"] for s in optimizer.state.values()]
        return [*net.parameters(), *momenta, layer.root, torch.tensor(layer.damping)]

    with pytest.warns(sngd.SngdWarning, match="Look for the batch"):
        sngd.refresh_(net)
    run(net, torch.randn(33, 5) * 1e6)  # so large twice in a row: no outlier any more
    before = [tensor.clone() for tensor in held()]
    with pytest.warns(sngd.SngdWarning, match=r"0\.weight.*a refresh would have changed"):
        sngd.refresh_(net)
    assert all(map(torch.equal, held()[:2], before[:2]))
    assert torch.equal(held()[-2], before[-2])
    assert torch.equal(held()[-1], before[-1])
    sngd.refresh_(net)  # nothing was observed since, and nothing is said twice


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_usual_training_is_never_refused(dtype):
    net = sngd.reconstruct(two_layers(dtype))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for step in range(25):
        optimizer.zero_grad()
        (run(net, torch.randn(33, 5).to(dtype) + step / 10) - 1).square().mean().backward()
        optimizer.step()
    assert all(layer.damping != 1.0 for layer in sngd.fisher_layers(net).values())


def test_folding_is_never_refused():
    config = Config(
        damping_rel_trace=0.0, damping_abs=1e-3, early_refreshes=(1,), refresh_every=1000
    )
    net, _ = trained(config)
    assert type(sngd.fold(net)[0]) is nn.Linear


def test_zeros_that_stay_zeros_are_no_change():
    model = nn.Sequential(nn.Linear(4, 3))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    net = sngd.reconstruct(model)
    net(torch.randn(9, 4))
    sngd.refresh_(net)
    assert sngd.fisher_layers(net)["0.weight"].damping != 1.0
