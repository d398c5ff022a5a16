"""What is set for the network's products does not reach the statistics and the roots."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sngd_compile as sngd
from api import EVERY_STEP, batch, mlp, train
from sngd_kernels.conv.geometry import conv_geometry
from sngd_kernels.conv.moment import conv_moment
from sngd_kernels.moments.rows import row_moment
from sngd_kernels.precision import exact_products
from sngd_kernels.roots.factors import invert_factor

HOST = torch.device("cpu")
BACKENDS = torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


def by_the_newer_interface() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def for_everything() -> None:
    torch.backends.fp32_precision = "tf32"


SETTINGS: list[Callable[[], None]] = [
    lambda: torch.set_float32_matmul_precision("high"),
    lambda: torch.set_float32_matmul_precision("medium"),
    by_the_newer_interface,
    for_everything,
    lambda: None,
]


def settings() -> tuple[str, ...]:
    """What both interfaces say; the older one raises where only the newer one was used."""
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:
        legacy = "mixed"
    return legacy, *(backend.fp32_precision for backend in BACKENDS)


@pytest.fixture(params=SETTINGS)
def lowered(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    """Set a lower precision, and afterwards what was set before."""
    before = settings()
    request.param()
    yield settings()
    torch.set_float32_matmul_precision(before[0])
    for backend, precision in zip(BACKENDS, before[1:], strict=True):
        backend.fp32_precision = precision
    assert settings() == before


class Products(TorchDispatchMode):
    """Record the precision under which products, solves and factorisations are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).split(".")[1]
        if name in {"mm", "bmm", "baddbmm", "addmm", "baddbmm_", "linalg_solve_triangular"}:
            self.seen.append((name, settings()))
        return func(*args, **(kwargs or {}))


def assert_exact(products: Products) -> None:
    assert products.seen
    for name, (legacy, *_) in products.seen:
        assert legacy == "highest", name


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 3))


@pytest.mark.parametrize("model", [mlp, wide])
@pytest.mark.parametrize("fisher", ["shared", "sketch"])
@pytest.mark.parametrize("root", ["cholesky", "symmetric", "denman_beavers"])
def test_a_refresh_is_exact(root, fisher, model, lowered):
    net = sngd.reconstruct(model(), EVERY_STEP.replace(root=root, fisher=fisher, rank=3))
    train(net, steps=3)
    net(batch())
    with Products() as products:
        sngd.refresh_(net)
    assert_exact(products)
    assert settings() == lowered


def state_after_refreshes(fisher: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 9, 3, bias=False) if fisher == "shared" else nn.Linear(50, 9)
    net = sngd.reconstruct(layer, EVERY_STEP.replace(fisher=fisher, rank=7, block_size=9))
    for step in range(3):
        x = batch(step, 33, 6 * 5 * 5 if fisher == "shared" else 50)
        net(x.unflatten(1, (6, 5, 5)) if fisher == "shared" else x).square().mean().backward()
        sngd.refresh_(net)
    return list(net.state_dict().values())


@pytest.mark.parametrize("fisher", ["shared", "sketch", "block"])
def test_statistics_roots_and_weights_are_the_same_to_the_bit(fisher, lowered):
    found = state_after_refreshes(fisher)
    torch.set_float32_matmul_precision("highest")
    assert all(map(torch.equal, found, state_after_refreshes(fisher)))


def test_a_second_moment_is_exact(lowered):
    shape = (40, 8, 12, 12)
    with Products() as products:  # a mode does not see what an op does inside
        row_moment(torch.randn(70, 9), bias=True)
        conv_moment(torch.randn(shape), conv_geometry(shape, 3, 1, 1, 1, 1), bias=False)
        invert_factor(torch.eye(200)[None], torch.ones(1), bias=True)
    assert_exact(products)
    assert settings() == lowered


def test_an_error_restores_the_setting(lowered):
    with pytest.raises(ZeroDivisionError), exact_products(HOST):
        raise ZeroDivisionError
    assert settings() == lowered


def test_the_network_keeps_what_was_set():
    torch.set_float32_matmul_precision("high")
    try:
        net = sngd.reconstruct(mlp(), EVERY_STEP)
        with Products() as products:
            net(batch())
        assert {legacy for name, (legacy, *_) in products.seen if name == "addmm"} == {"high"}
    finally:
        torch.set_float32_matmul_precision("highest")
