"""What a process has beside the networks: threads, a profiler, memory of networks that are gone."""

import cProfile
import gc
import linecache
import sys
import threading
import weakref

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd


class Free(nn.Module):
    """Runs as it is, since its forward branches on data; its weight is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        x = nn.functional.linear(x, self.weight, self.bias)
        return x if x.sum() > 0 else x @ self.weight


@pytest.mark.parametrize("make", [Free, lambda: nn.BatchNorm1d(4), lambda: nn.LSTM(4, 4)])
def test_two_threads_may_run_one_network(make):
    net = sngd.reconstruct(nn.Sequential(make())).eval()
    x, failures = torch.randn(5, 4), []

    def run() -> Tensor:
        out = net(x)
        return out if isinstance(out, Tensor) else out[0]

    with torch.no_grad():
        expected = run()

    def repeat() -> None:
        try:
            with torch.no_grad():
                for _ in range(150):
                    torch.testing.assert_close(run(), expected)
        except Exception as error:
            failures.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=repeat) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not failures


@pytest.mark.parametrize("inplace", [False, True])
def test_a_network_that_is_made_in_inference_mode_can_be_trained(inplace):
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.inference_mode():
        net = sngd.reconstruct(model, inplace=inplace)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    assert all(fisher.rows_seen == 2 for fisher in sngd.fisher_layers(net).values())


def test_a_profiler_stays_on():
    def afterwards() -> None:
        """Be recorded."""

    profiler = cProfile.Profile()
    profiler.enable()
    sngd.reconstruct(nn.Linear(3, 2))
    afterwards()
    profiler.disable()
    assert any(entry.code is afterwards.__code__ for entry in profiler.getstats())


def test_nothing_stays_of_networks_that_are_gone():
    def one() -> "weakref.ref[type[nn.Module]]":
        class Local(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer, self.w = nn.Linear(3, 3), nn.Parameter(torch.randn(3, 2))

            def forward(self, x: Tensor) -> Tensor:
                return self.layer(x) @ self.w

        net = sngd.reconstruct(Local())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        net(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        return weakref.ref(Local)

    one()
    gc.collect()
    entries = len(linecache.cache)
    classes = [one() for _ in range(5)]
    gc.collect()
    assert [made() for made in classes] == [None] * 5
    assert len(linecache.cache) == entries
