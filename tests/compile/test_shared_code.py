"""Equal networks, and equal parts of one, are compiled once, as equal plain ones are."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._dynamo.testing import CompileCounterWithBackend

import sngd_compile as sngd
from backend.compiled import SETTING, mlp, sample, train
from compile.test_one_graph import assert_equal
from sngd_compile.modules.program import Program

pytestmark = pytest.mark.usefixtures("float64", "fresh")
WIDTH = 5


class Block(nn.Module):
    """Attention and an MLP, each after a LayerNorm, for `[N, T, 5]`."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.projected, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 7), nn.GELU(), nn.Linear(7, WIDTH))

    def forward(self, inputs: Tensor) -> Tensor:
        parts = self.projected(self.before_attention(inputs)).chunk(3, -1)
        inputs = inputs + self.out(F.scaled_dot_product_attention(*parts))
        return inputs + self.mlp(self.before_mlp(inputs))


class Tower(nn.Module):
    """More blocks than Dynamo compiles of one function, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        blocks = torch._dynamo.config.recompile_limit + 2
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = block(inputs)
        return self.head(inputs)


class ConvNet(nn.Module):
    """A convolution with BatchNorm, for `[N, 1, 6, 6]`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


NETWORKS = [
    pytest.param(mlp, (5,), id="root_is_a_container"),
    pytest.param(Block, (4, WIDTH), id="block"),
    pytest.param(ConvNet, (1, 6, 6), id="convolution"),
    pytest.param(
        lambda: nn.GRU(WIDTH, 3, batch_first=True), (4, WIDTH), id="gru", marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("build", "shape"), NETWORKS)
def test_networks_of_one_kind_share_one_graph(build: Callable[[], nn.Module], shape):
    counter = CompileCounterWithBackend("eager")
    for _ in range(3):
        net = torch.compile(sngd.reconstruct(build()), backend=counter, fullgraph=True)
        found = net(torch.randn(2, *shape))
        (found[0] if isinstance(found, tuple) else found).sum().backward()
    assert counter.frame_count == 1


@pytest.mark.slow
# Dynamo looks at `.grad` of the inputs of a block, whatever the block is.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_blocks_that_are_compiled_one_by_one_share_one_graph():
    eager = sngd.reconstruct(Tower(), SETTING)
    net, counter = copy.deepcopy(eager), CompileCounterWithBackend("eager")
    for block in net.blocks:
        block.compile(backend=counter, fullgraph=True)

    def train_on(one: nn.Module) -> None:
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01)
        for step in range(5):
            optimizer.zero_grad()
            inputs = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(step))
            one(inputs).square().mean().backward()
            optimizer.step()

    train_on(net)
    train_on(eager)
    assert_equal(net, eager)
    # The inputs of the first block need no gradient, those of the others do.
    assert counter.frame_count == 2


CONFIGS = {
    "default": SETTING,
    "mean": SETTING.replace(over_outputs="mean"),
    "symmetric": SETTING.replace(root="symmetric"),
    "sketch": SETTING.replace(root="nystrom", rank=2),
    "diagonal": SETTING.replace(fisher="diagonal"),
    "kronecker": SETTING.replace(fisher="kronecker"),
}


@pytest.mark.slow
def test_networks_of_other_local_fishers_train_as_they_do_in_eager():
    model = mlp()
    pairs = {}
    for name, config in CONFIGS.items():
        eager = sngd.reconstruct(copy.deepcopy(model), config)
        net = sngd.reconstruct(copy.deepcopy(model), config)
        pairs[name] = torch.compile(net, backend="eager", fullgraph=True), eager
    # In turns, so that each finds what was compiled for the others.
    for first in (0, 4):
        for name, (net, eager) in pairs.items():
            losses = [
                train(one, lambda step: [sample((5,), step)], 4, first) for one in (net, eager)
            ]
            torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12, msg=name)
            assert_equal(net, eager)


def graph_of(function: Callable[[Tensor], Tensor]) -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.call_function(function, (graph.placeholder("x"),)))
    return graph


def named(factor: int) -> Callable[[Tensor], Tensor]:
    def scaled(x: Tensor) -> Tensor:
        return factor * x

    return scaled


def test_programs_of_one_source_share_a_function_if_its_names_mean_the_same():
    double, triple = named(2), named(3)
    programs = [Program(graph_of(f), frozenset()) for f in (double, double, triple)]
    one, equal, other = (program.forward for program in programs)
    assert one is equal
    assert programs[0].source == programs[2].source
    assert [f(nn.Identity(), torch.ones(())) for f in (one, other)] == [2, 3]
