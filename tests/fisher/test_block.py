"""`Config(fisher="block")` keeps the diagonal blocks of what "shared" keeps."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from laws import conv_case, every_block_law, linear_case
from laws.case import Case
from sngd_compile import Config
from sngd_compile.fisher.kinds.block import block_sizes
from theorem.networks import MLP, ConvNet, batch, loss

pytestmark = pytest.mark.usefixtures("float64")
SHARED = Config(max_rows=None)


def in_blocks(case: Case, block_size: int) -> Case:
    """Cut the inputs of a case into blocks."""
    return replace(case, block_size=block_size, name=f"{case.name} in blocks of {block_size}")


def linear_from_transpose() -> Case:
    """A transposed convolution, whose weight is laid out as its transpose."""
    from_convolution = conv_case(nn.Conv2d, (3, 4), (1, 1), (2, 3, 4, 3))
    return replace(
        from_convolution,
        name="transposed",
        module=lambda: nn.ConvTranspose2d(3, 4, 1),
        arrange=lambda weight: weight.transpose(0, 1).flatten(1),
        rows=lambda layer, x: x.movedim(1, -1).reshape(-1, 3),
    )


CASES = [
    in_blocks(linear_case(7, 3, (6,)), 3),
    in_blocks(linear_case(7, 11, (3, 2)).called("fewer rows than outputs"), 2),
    in_blocks(linear_case(6, 4, (9,)), 2),
    in_blocks(linear_case(5, 11, (3,), bias=False), 1),
    in_blocks(linear_case(150, 3, (7,)), 149),
    in_blocks(conv_case(nn.Conv1d, (3, 2), 3, (2, 3, 7), stride=2), 2),
    in_blocks(conv_case(nn.Conv2d, (5, 3), (3, 2), (2, 5, 6, 4), padding=1), 17),
    in_blocks(conv_case(nn.Conv2d, (6, 4), 2, (2, 6, 4, 5), groups=2), 5),
    in_blocks(conv_case(nn.Conv2d, (6, 4), 2, (2, 6, 4, 5), groups=2, bias=False), 3),
    in_blocks(linear_from_transpose(), 2),
]


@every_block_law(CASES)
def test_laws(laws):
    laws.check()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((7, 3, 1, True), (3, 3, 2)),
        ((6, 3, 1, True), (3, 4)),
        ((6, 3, 1, False), (3, 3)),
        ((3, 3, 1, True), (4,)),
        ((1, 5, 1, False), (1,)),
        ((45, 20, 9, True), (18, 18, 10)),
        ((18, 8, 9, True), (8, 8, 3)),
        ((27, 9, 9, False), (9, 9, 9)),
    ],
)
def test_every_input_is_in_one_block_and_the_bias_in_the_last(arguments, expected):
    assert block_sizes(*arguments) == expected
    assert sum(expected) == arguments[0] + arguments[3]


def trained(config: Config) -> tuple[nn.Module, nn.Module]:
    """Train with momentum over several refreshes; return the network and the folded model."""
    torch.manual_seed(2)
    net = sngd.reconstruct(MLP(), config)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for step in range(8):
        optimizer.zero_grad()
        inputs, labels = batch(net, step)
        (loss(net(inputs), labels) / len(labels)).backward()
        optimizer.step()
    return net, sngd.fold(net)


def test_one_block_is_shared_bit_for_bit():
    config = SHARED.replace(refresh_every=3)
    _, shared = trained(config)
    net, one_block = trained(config.replace(fisher="block", block_size=7))
    assert {site.kind for site in sngd.explain(net).sites} == {"shared"}
    assert all("one block holds all" in site.note for site in sngd.explain(net).sites)
    for one, other in zip(shared.parameters(), one_block.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_block_of_one_input_without_bias_is_the_diagonal():
    fishers = [SHARED.replace(fisher="block", block_size=1), SHARED.replace(fisher="diagonal")]
    layers = []
    for config in fishers:
        torch.manual_seed(3)
        net = sngd.reconstruct(ConvNet(), config)
        net(batch(net, 0)[0])
        layers.append(sngd.fisher_layers(sngd.refresh_(net))["4.weight"])
    torch.testing.assert_close(layers[0].factor, layers[1].factor, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(layers[0].root, layers[1].root, rtol=1e-12, atol=0.0)


def test_the_plan_prints_number_and_size_of_the_blocks():
    model = nn.Sequential(
        nn.Conv2d(5, 4, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(96, 7)
    )
    config = Config(fisher="block", block_size=20)
    plan = sngd.explain(model, config)
    text = str(plan)
    for shown in ("block 2 x 18 + 10 ", "shared 2 x 19 ", "block 4 x 20 + 17 "):
        assert shown in text
    state = {site.name: site.state_bytes for site in plan.sites}
    full = {site.name: site.state_bytes for site in sngd.explain(model).sites}
    assert state["3.weight"] < full["3.weight"] / 3
    net = sngd.reconstruct(model, config)
    for name, layer in sngd.fisher_layers(net).items():
        assert sum(buffer.nbytes for buffer in layer.buffers()) == state[name]
    assert str(sngd.explain(net)) == text
    two_groups = nn.Conv2d(8, 6, 3, groups=2)
    in_two = sngd.explain(two_groups, Config(fisher="block", block_size=27))
    assert "block 2 x (1 x 27 + 10)" in str(in_two)


def test_the_plan_says_where_a_block_is_not_what_was_asked():
    wide = sngd.explain(nn.Conv2d(3, 2, 5), Config(fisher="block", block_size=7)).sites[0]
    assert "cut through channels" in wide.note
    config = Config(fisher="block", block_size=10, memory_budget=7000)
    site = sngd.explain(nn.Linear(100, 2), config).sites[0]
    assert site.kind == "diagonal"
    assert "block 9 x 10 + 11" in site.note
    assert "gave way to diagonal 101" in site.note
    fits = config.replace(memory_budget=27000)
    assert sngd.explain(nn.Linear(100, 2), fits).sites[0].kind == "block"
    table = sngd.explain(nn.Embedding(50, 3), config).sites[0]
    assert table.kind == "diagonal"


def test_a_model_compiled_with_the_backend_says_why():
    model = nn.Linear(9, 2)
    options = {"fisher": "block", "block_size": 4, "inner_backend": "eager"}
    compiled = torch.compile(model, backend="sngd", options=options)
    compiled(torch.randn(4, 9)).sum().backward()
    (site,) = sngd.explain(compiled).sites
    assert site.kind == "shared"
    assert "knows no blocks; use reconstruct" in site.note


class Tied(nn.Module):
    """A head that is also the table that is looked up."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        """Look up, then score."""
        return nn.functional.linear(nn.functional.embedding(x, self.table), self.table)


def test_a_tied_table_adds_a_multiple_of_the_identity_to_every_block():
    model, x = Tied(), torch.tensor([0, 3, 3, 1])
    full, blocks = (
        sngd.fisher_layers(observed(model, config, x))["table"].factor
        for config in (SHARED, SHARED.replace(fisher="block", block_size=3))
    )
    expected = torch.cat([full[:3, :3].flatten(), full[3:, 3:].flatten()])
    torch.testing.assert_close(blocks, expected, rtol=1e-12, atol=1e-14)


def test_a_tied_table_in_blocks_keeps_the_function():
    model, x = Tied(), torch.tensor([0, 3, 3, 1])
    net = observed(model, SHARED.replace(fisher="block", block_size=3), x)
    torch.testing.assert_close(net(x), model(x), rtol=1e-12, atol=1e-12)


def observed(model, config, x):
    """Reconstruct, show one batch, refresh."""
    net = sngd.reconstruct(model, config)
    net(x)
    return sngd.refresh_(net)
