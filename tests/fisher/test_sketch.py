"""`sketch`: what wide layers have by default, on hostile inputs, in files and in both APIs."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from api import EVERY_STEP, apart, train
from sngd_compile import Config, ConfigError, ModelError, SngdWarning
from sngd_compile.fisher.carry_over import carry_over_
from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.sketch import SketchRoot
from sngd_compile.layout import Layout
from sngd_kernels import sketch_basis
from sngd_kernels.moments.sketch import TRACE
from sngd_kernels.reference import sketch_metric_reference, sketch_reference

pytestmark = pytest.mark.usefixtures("float64")

SKETCH = EVERY_STEP.replace(fisher="sketch", rank=4)
UNDAMPED = SKETCH.replace(damping_rel_trace=0.0, damping_abs=0.0)
WIDTH = 23


def rows(step: int = 0, count: int = 9, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(count, width, generator=generator) + 0.3


def observed(x: Tensor, config: Config = SKETCH, outputs: int = 3) -> nn.Module:
    torch.manual_seed(1)
    net = sngd.reconstruct(nn.Linear(x.shape[-1], outputs, dtype=x.dtype), config)
    net(x)
    return sngd.refresh_(net)


def moment_of(x: Tensor) -> Tensor:
    joined = torch.cat([x, x.new_ones(len(x), 1)], 1)
    return joined.T @ joined / len(x)


@pytest.mark.parametrize("is_convolution", [False, True])
def test_all_columns_are_the_exact_factor(is_convolution):
    layer = nn.Conv2d(4, 6, (2, 3), groups=2) if is_convolution else nn.Linear(31, 3)
    config = EVERY_STEP.replace(damping_rel_trace=1e-2)
    x = torch.randn(3, 4, 5, 6) if is_convolution else rows(width=31)
    metrics, dampings = [], []
    for fisher in ("shared", "sketch"):
        net = sngd.reconstruct(layer, config.replace(fisher=fisher, rank=999))
        net(x)
        sngd.refresh_(net)
        metrics.append(net.weight_fisher.metric())
        dampings.append(net.weight_fisher.damping)
    assert dampings[0] == pytest.approx(dampings[1], rel=1e-13)
    torch.testing.assert_close(*metrics, rtol=1e-11, atol=1e-12)


def test_the_metric_of_every_kind_is_its_damped_factor():
    x = rows()
    joined = moment_of(x)
    for fisher in ("shared", "diagonal", "block"):
        net = observed(x, EVERY_STEP.replace(fisher=fisher, block_size=9))
        damping, eye = net.weight_fisher.damping, torch.eye(WIDTH + 1)
        block = torch.arange(WIDTH + 1).clamp(max=WIDTH - 1) // 9
        kept = {"shared": torch.ones(1), "diagonal": eye, "block": block[:, None] == block}
        expected = joined * kept[fisher] + damping * eye
        torch.testing.assert_close(net.weight_fisher.metric(), expected, rtol=1e-9, atol=1e-10)


def test_wide_layers_have_it_by_default():
    layers = nn.ModuleList([nn.Linear(192, 2, bias=False), nn.Linear(192, 2), nn.Conv2d(22, 2, 3)])
    kinds = [site.kind for site in sngd.explain(layers).sites]
    assert kinds == ["shared", "sketch", "sketch"]
    text = str(sngd.explain(layers))
    assert "sketch 193 of rank 48" in text
    for config in (Config(rank=None), Config(root="symmetric"), Config.paper()):
        assert {site.kind for site in sngd.explain(layers, config).sites} == {"shared"}
    (site,) = sngd.explain(nn.Linear(300, 2), Config(rank=30)).sites
    assert (site.kind, site.spec.rank) == ("sketch", 30)
    named = sngd.explain(nn.Linear(5, 2), Config(fisher="sketch", rank=None)).sites[0]
    assert named.spec.rank == 6


def test_what_is_unavailable_is_sketched_where_it_is_wide():
    (site,) = sngd.explain(
        nn.Linear(300, 400, dtype=torch.float16), Config(fisher="kronecker")
    ).sites
    assert site.kind == "sketch"
    assert "unavailable here" in site.note


def test_the_plan_counts_what_it_costs():
    (site,) = sngd.explain(nn.Linear(300, 7), Config()).sites
    assert site.step_work == 4 * 2100 * 48
    (layer,) = sngd.fisher_layers(sngd.reconstruct(nn.Linear(300, 7))).values()
    assert site.state_bytes == sum(buffer.nbytes for buffer in layer.buffers())
    largest = max(buffer.numel() for buffer in layer.buffers())
    assert largest == 302 * 48


def test_a_rank_below_1_is_refused():
    with pytest.raises(
        ConfigError, match=r"Config\.rank = 0: expected an integer in \[1, .* or None"
    ):
        Config(rank=0)


HOSTILE = {
    "twelve orders of magnitude": lambda: rows(count=40) * torch.logspace(-6, 6, WIDTH),
    "rank two": lambda: rows(count=40, width=2) @ rows(3, 2),
    "constant": lambda: torch.full((40, WIDTH), 0.7),
    "zeros": lambda: torch.zeros(40, WIDTH),
    "one row": lambda: rows(count=1),
    "one huge outlier": lambda: torch.cat([rows(count=40), 1e6 * rows(7, 1)]),
    "one input": lambda: torch.cat([1e3 * rows(width=1, count=40), torch.zeros(40, WIDTH - 1)], 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_inputs_have_a_root_and_keep_the_function(name, dtype):
    x = HOSTILE[name]().to(dtype)
    net = observed(x, SKETCH.replace(damping_rel_trace=1e-3))
    fisher, moment = net.weight_fisher, moment_of(x.double())
    omega = sketch_basis(WIDTH + 1, 4, torch.float64, torch.device("cpu"))
    expected, digits = sketch_reference(moment, omega), 1e-12 if dtype == torch.float64 else 1e-5
    scale = expected.abs().max()
    assert (fisher.factor.double() - expected).abs().max() < digits * scale
    metric = sketch_metric_reference(moment, omega, fisher.damping)
    root = fisher.root.double()
    error = root @ metric @ root.mT - torch.eye(WIDTH + 1)
    assert error.abs().max() < (1e-8 if dtype == torch.float64 else 2e-2)
    plain = sngd.fold(net)
    y = x.double().abs().max() * torch.eye(WIDTH)[:5].to(dtype)
    wanted = plain(y)
    for step in range(3):  # from a root to another and another
        net(x * (1 + step))
        sngd.refresh_(net)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    assert (net(y) - wanted).abs().max() < tolerance * wanted.abs().max()


def test_zeros_undamped_keep_the_root():
    net = sngd.reconstruct(nn.Linear(9, 2, bias=False), UNDAMPED)
    net(torch.zeros(4, 9))
    sngd.refresh_(net)
    assert torch.equal(net.weight_fisher.root, torch.eye(9))
    net(rows(count=2, width=9))
    with pytest.warns(SngdWarning, match="not positive definite"):
        sngd.refresh_(net)
    assert torch.equal(net.weight_fisher.root, torch.eye(9))


def test_micro_batches_add_up_to_the_batch():
    x = rows(count=12)
    whole, parts = observed(x), sngd.reconstruct(nn.Linear(WIDTH, 3), SKETCH)
    for part in x.split([5, 1, 6]):
        parts(part)
    sngd.refresh_(parts)
    one, other = whole.weight_fisher, parts.weight_fisher
    torch.testing.assert_close(one.factor, other.factor, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(one.root, other.root, rtol=1e-11, atol=1e-12)
    assert one.factor[TRACE] == pytest.approx(float(moment_of(x).trace()), rel=1e-13)


def test_few_rows_and_many_take_the_same_function():
    net = sngd.reconstruct(nn.Linear(WIDTH, 8), SKETCH)
    train(net, inputs=rows)
    for count in (1, 300):
        assert apart(net, sngd.fold(net), rows(9, count)) < 1e-12


def test_a_resumed_run_is_the_run():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, 2))
    net = sngd.reconstruct(model, SKETCH)
    optimizer = train(net, steps=3, inputs=rows)
    state, steps = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    resumed = sngd.reconstruct(model, SKETCH)
    resumed.load_state_dict(state)
    other = torch.optim.SGD(resumed.parameters(), lr=0.03, momentum=0.9)
    other.load_state_dict(steps)
    train(net, optimizer, steps=4, first=3, inputs=rows)
    train(resumed, other, steps=4, first=3, inputs=rows)
    assert apart(net, resumed, rows(99)) == 0.0
    narrow = sngd.reconstruct(model, SKETCH.replace(rank=3))
    with pytest.raises(ModelError, match="has the shape"):
        narrow.load_state_dict(state)


def compiled(model: nn.Module, steps: int, first: int = 0) -> None:
    torch._dynamo.reset()
    options = {"fisher": "sketch", "rank": 4, "inner_backend": "eager", "early_refreshes": (1,)}
    options |= {"refresh_every": 2, "observe_every": 1, "max_rows": None, "early_observations": ()}
    train(
        torch.compile(model, backend="sngd", options=options), steps=steps, first=first, inputs=rows
    )


def test_both_apis_walk_alike_and_a_compiled_state_is_loaded():
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 3)
    net = sngd.reconstruct(model, SKETCH)
    # A velocity is one of w there and of w' here: without momentum the steps are the same.
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03)
    train(net, optimizer, steps=5, inputs=rows)
    other, third = copy.deepcopy(model), copy.deepcopy(model)
    compiled(other, steps=3)
    third.load_state_dict(other.state_dict())
    sngd.load_state_dict(third, sngd.state_dict(other))
    (layer,) = sngd.fisher_layers(third).values()
    (source,) = sngd.fisher_layers(other).values()
    assert layer.kind == "sketch"
    assert layer.root_buffers.basis.shape == (WIDTH + 1, 4)
    assert torch.equal(layer.factor, source.factor)
    assert torch.equal(layer.root, source.root)


def test_a_swapped_use_adds_the_sketch_of_an_identity():
    spec = sngd.explain(nn.Linear(WIDTH, 3, bias=False), SKETCH).sites[0].spec
    total = torch.ones(WIDTH + 1, 4)
    kind_of(spec).add_to_diagonal(spec, total, torch.tensor(0.7))
    omega = sketch_basis(WIDTH, 4, torch.float64, torch.device("cpu"))
    torch.testing.assert_close(total, 1 + sketch_reference(0.7 * torch.eye(WIDTH), omega))


@pytest.mark.parametrize("fisher", ["shared", "sketch", "diagonal"])
def test_a_form_without_the_bias_carries_over_what_was_seen(fisher):
    # With as many columns as rows a sketch knows its factor.
    config = EVERY_STEP.replace(fisher=fisher, rank=WIDTH + 1 if fisher == "sketch" else None)
    net = observed(rows(), config)
    old = net.weight_fisher
    spec = replace(old.spec, has_bias=False)
    new = FisherLayer("weight", spec, old.config, torch.device("cpu"))
    carry_over_(old, new)
    assert new.schedule.steps == old.schedule.steps
    assert new.rows_seen == old.rows_seen
    inner = moment_of(rows())[:-1, :-1] * (torch.eye(WIDTH) if fisher == "diagonal" else 1)
    expected = inner + new.damping * torch.eye(WIDTH)
    torch.testing.assert_close(new.metric(), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("is_zero", [False, True])
def test_a_sketch_without_the_bias_is_that_of_the_known_part(is_zero):
    spec = observed(rows()).weight_fisher.spec
    kind, omega = kind_of(spec), sketch_basis(WIDTH + 1, 4, torch.float64, torch.device("cpu"))
    low = omega.new_zeros(WIDTH + 1, 3) if is_zero else rows(count=3, width=WIDTH + 1).T
    moment = sketch_reference(low @ low.T, omega)  # of a rank that four columns know
    less = sketch_basis(WIDTH, 4, torch.float64, torch.device("cpu"))
    expected = sketch_reference(low[:-1] @ low[:-1].T, less)
    torch.testing.assert_close(kind.without_bias(spec, moment), expected, rtol=1e-9, atol=1e-10)


def test_a_transposed_use_carries_the_trace_over():
    old = observed(rows(), SKETCH.replace(damping_rel_trace=0.1)).weight_fisher
    layout = Layout.transposed((3, WIDTH))
    assert layout.is_transposed != old.layout.is_transposed
    spec = replace(old.spec, layout=layout, has_bias=False)
    new = FisherLayer("weight", spec, old.config, torch.device("cpu"))
    carry_over_(old, new)
    mean = moment_of(rows()).trace() / WIDTH
    omega = sketch_basis(new.size, min(4, new.size), torch.float64, torch.device("cpu"))
    expected = sketch_metric_reference(mean * torch.eye(new.size), omega, new.damping)
    torch.testing.assert_close(new.metric(), expected, rtol=1e-9, atol=1e-10)


def test_the_root_of_nystroem_asks_for_a_sketch_by_its_name():
    config = EVERY_STEP.replace(root="nystrom", rank=4)
    named, kind = (observed(rows(), c) for c in (config, SKETCH))
    assert named.weight_fisher.kind == "sketch"
    torch.testing.assert_close(named.weight_fisher.metric(), kind.weight_fisher.metric())
    narrow = sngd.explain(nn.Linear(3, 2), Config(root="nystrom")).sites[0]
    assert (narrow.kind, narrow.spec.rank, narrow.note) == ("sketch", 4, "")
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    (unit,) = sngd.explain(model, Config(root="nystrom", fisher="unit")).sites
    assert (unit.kind, unit.spec.root) == ("unit", "cholesky")
    assert '"nystrom" is that of a sketch' in unit.note


def forgotten(root: SketchRoot) -> SketchRoot:
    root = copy.deepcopy(root)
    root.known = None
    return root


def loaded(root: SketchRoot) -> SketchRoot:
    own = copy.deepcopy(root)
    for buffer in own.buffers():
        buffer.fill_(7.0)
    own.load_state_dict(root.state_dict())
    return own


WAYS = {"copied": copy.deepcopy, "forgotten": forgotten, "loaded": loaded}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("count", [9, 400])
def test_equal_roots_give_equal_products_to_the_bit(way, is_new, count):
    torch.set_default_dtype(torch.float32)
    net = observed(rows(count=count).float(), SKETCH.replace(rank=20, step_budget=0.25))
    root = net.weight_fisher.new_root(torch.float32) if is_new else net.weight_fisher.root_buffers
    other, pair = WAYS[way](root), (torch.randn(3, WIDTH), torch.randn(3))
    for name in ("fold", "unfold", "to_prime", "from_prime"):
        assert all(map(torch.equal, getattr(root, name)(*pair), getattr(other, name)(*pair)))
    assert torch.equal(*(some.linear(rows().float(), *pair) for some in (root, other)))
    assert root.columns == other.columns
