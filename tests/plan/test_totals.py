"""What a plan costs in all, and the report in which weights that are alike are one line."""

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, batch, mlp, sgd, train
from api.reports import expanded, names_in
from sngd_compile import Config
from sngd_compile.plan.report import plan_report
from sngd_compile.plan.totals import ASSUMED_ROWS
from sngd_compile.registry import KINDS


def bytes_of(net):
    layers = {id(layer): layer for layer in sngd.fisher_layers(net).values()}.values()
    return sum(buffer.nbytes for layer in layers for buffer in layer.buffers())


class Parts(nn.Module):
    """A table, a convolution, a normalisation, wide and narrow layers, one shared, one frozen."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm1d(8)
        self.up, self.down, self.again = nn.Linear(8, 230), nn.Linear(230, 8), nn.Linear(8, 230)
        self.again.weight = self.up.weight
        self.out = nn.Linear(230, 2)
        self.out.weight.requires_grad_(False)

    def forward(self, x):
        hidden = self.norm(self.conv(self.table(x).mT)).mT
        return self.out(self.again(self.down(self.up(hidden).relu())).relu())


def tokens(step, size=7):
    generator = torch.Generator().manual_seed(step)
    return torch.randint(11, (size, 5), generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_state_is_what_the_buffers_take(kind, dtype):
    model, config = Parts().to(dtype), EVERY_STEP.replace(fisher=kind, block_size=50)
    planned = sngd.explain(model, config)
    net = sngd.reconstruct(model, config)
    assert planned.state_bytes == sngd.explain(net).state_bytes == bytes_of(net)
    assert planned.state_bytes == sum(site.state_bytes for site in planned.sites)
    assert str(planned) == str(sngd.explain(net))
    train(net, steps=1, inputs=tokens)
    assert sngd.explain(net).state_bytes == bytes_of(net) == planned.state_bytes


def test_memory_is_printed_with_its_unit():
    last = str(sngd.explain(nn.Linear(784, 512))).split("\n\n")[-1]
    assert last.startswith("The Fisher layers take 460.0 KiB in all.\n")
    with torch.device("meta"):
        layer = nn.Linear(2**14, 2**14, bias=False)
    exact = Config(rank=None, memory_budget=2**40)
    assert "take 3.00 GiB in all" in str(sngd.explain(layer, exact))
    assert "take 9.02 MiB in all" in str(sngd.explain(layer))


@pytest.mark.parametrize("rows", [3, 100])
def test_work_is_that_of_the_cheaper_side(rows):
    config = EVERY_STEP.replace(rank=20)
    for width, work in ((50, 2 * 50), (90, 4 * 20)):
        model = nn.Linear(width, 10, bias=False)
        assumed = pytest.approx(work / (3 * ASSUMED_ROWS))
        assert sngd.explain(model, config).work_per_step == assumed
        net = sngd.reconstruct(model, config)
        assert sngd.explain(net).work_per_step == assumed
        train(net, steps=3, inputs=lambda step, width=width: batch(step, rows, width))
        expected = work / (3 * max(rows, 10))
        assert sngd.explain(net).work_per_step == pytest.approx(expected)


def test_work_of_several_layers_is_weighed_by_theirs():
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))
    assumed = (20 * 10 + 12 * 8) / (3 * ASSUMED_ROWS * 32)
    assert sngd.explain(model).work_per_step == pytest.approx(assumed)
    net = sngd.reconstruct(model, EVERY_STEP)
    train(net)
    assert sngd.explain(net).work_per_step == pytest.approx((20 * 10 + 12 * 8) / (3 * 7 * 32))


def test_rows_are_those_of_a_step_that_is_observed():
    # Steps 0, 2, 5, 10 and 20, of 7 rows each; of another, 20 rows are the most that are drawn.
    net = sngd.reconstruct(nn.Linear(5, 4, bias=False))
    train(net, steps=23)
    assert sngd.fisher_layers(net)["weight"].rows_seen == 35
    assert sngd.explain(net).work_per_step == pytest.approx(2 * 5 / (3 * 7))
    drawn = sngd.reconstruct(nn.Linear(5, 4, bias=False))
    drawn(batch(size=70)).sum().backward()
    assert sngd.explain(drawn).work_per_step == pytest.approx(2 * 5 / (3 * 20))


@pytest.mark.parametrize("steps", [*range(8), 39, 40, 41])
@pytest.mark.parametrize("early", [(), (0,), (2, 5), (3, 20, 40)])
def test_observed_steps_are_counted(steps, early):
    config = Config(observe_every=20, early_observations=early)
    layer = sngd.fisher_layers(sngd.reconstruct(mlp(), config))["0.weight"]
    layer.schedule.restore(steps, 0)
    assert layer.schedule.observed_in_all == sum(map(config.is_observed, range(steps)))


def test_a_table_multiplies_nothing():
    assert sngd.explain(nn.Embedding(1000, 3)).work_per_step == 0.0
    model = nn.Sequential(nn.Embedding(1000, 5), *mlp())
    assert sngd.explain(model).work_per_step == sngd.explain(mlp()).work_per_step


def test_shares_of_a_network():
    model = Parts()
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    explained = sngd.explain(model)
    assert explained.reconstructed_share == sum(s.parameter_count for s in explained.sites) / total
    assert 0.5 < explained.reconstructed_share < 1.0
    assert explained.observed_share == 0.0
    assert "have seen rows" not in str(explained)
    net = sngd.reconstruct(model)
    assert sngd.explain(net).observed_share == 0.0
    train(net, steps=1, inputs=tokens)
    explained = sngd.explain(net)
    assert explained.observed_share == 1.0
    assert "Of those 100.0 % have Fisher layers that have seen rows." in str(explained)
    assert sngd.explain(sngd.fold(net)).observed_share == 0.0


def test_a_branch_that_was_not_taken_has_seen_no_rows():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.taken, self.other = nn.Linear(5, 3), nn.Linear(5, 6)

        def forward(self, x, other=False):
            return self.other(x) if other else self.taken(x)

    net = sngd.reconstruct(Branches())
    optimizer = sgd(net)
    net(batch()).sum().backward()
    optimizer.step()
    explained = sngd.explain(net)
    assert explained.observed_share == 18 / 54
    assert explained.work_per_step == pytest.approx(2 * 5 / (3 * 7))


@pytest.mark.parametrize("model", [nn.Tanh(), mlp().requires_grad_(False), nn.LayerNorm(0)])
def test_nothing_to_count(model):
    explained = sngd.explain(model)
    assert explained.state_bytes == 0
    assert explained.work_per_step == explained.reconstructed_share == 0.0
    assert explained.observed_share == 0.0
    assert "in all" not in str(explained)


def test_all_left_out_by_overrides():
    explained = sngd.explain(mlp(), overrides={"*": None})
    assert (explained.state_bytes, explained.reconstructed_share) == (0, 0.0)
    assert str(explained).endswith("There are no Fisher layers.")


def test_lazy_parameters_are_no_elements_yet():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3))
    assert sngd.explain(model).reconstructed_share == 1.0


def test_a_network_on_the_meta_device():
    with torch.device("meta"):
        net = sngd.reconstruct(mlp())
    assert sngd.explain(net).state_bytes == sngd.explain(mlp()).state_bytes == bytes_of(net)


def test_a_weight_that_is_frozen_later_still_has_its_state():
    net = sngd.reconstruct(mlp())
    net[0].requires_grad_(False)
    assert sngd.explain(net).state_bytes == bytes_of(net)


def test_a_compiled_model():
    model = mlp()
    compiled = torch.compile(model, backend="sngd", options={"inner_backend": "eager"})
    assert sngd.explain(compiled).state_bytes == 0
    train(compiled, steps=2)
    explained = sngd.explain(compiled)
    assert explained.state_bytes == bytes_of(compiled) == sngd.explain(mlp()).state_bytes
    assert explained.reconstructed_share == explained.observed_share == 1.0


def test_the_log_adds_up_the_plan_itself():
    explained = sngd.explain(Parts())
    assert plan_report(explained.plan) == str(explained)


class Llama(nn.Module):
    """The shapes of `transformers.LlamaConfig()`, block by block."""

    class Block(nn.Module):
        def __init__(self, width, inner):
            super().__init__()
            for name in ("q", "k", "v", "o"):
                setattr(self, name, nn.Linear(width, width, bias=False))
            self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
            self.down = nn.Linear(inner, width, bias=False)
            self.before, self.after = nn.RMSNorm(width), nn.RMSNorm(width)

        def forward(self, x):
            rows = self.before(x)
            q, k, v = self.q(rows), self.k(rows), self.v(rows)
            x = x + self.o(F.scaled_dot_product_attention(q, k, v))
            rows = self.after(x)
            return x + self.down(F.silu(self.gate(rows)) * self.up(rows))

    def __init__(self, width=4096, inner=11008, layers=32, entries=32000):
        super().__init__()
        self.embed = nn.Embedding(entries, width)
        self.layers = nn.ModuleList([self.Block(width, inner) for _ in range(layers)])
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, entries, bias=False)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def llama_of_transformers():
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM(transformers.LlamaConfig())


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("build", [Llama, llama_of_transformers])
def test_a_llama_is_explained_without_its_memory(build):
    with torch.device("meta"):
        model = build()
    begin = time.process_time()
    explained = sngd.explain(model)
    text = str(explained)
    assert time.process_time() - begin < 15
    assert explained.state_bytes < 2**31
    assert [site.rule for site in explained.sites if site.kind == "diagonal"] == ["embedding"]
    assert explained.reconstructed_share == 1.0
    assert len(explained.sites) == 291
    assert sorted(names_in(text)) == sorted(site.name for site in explained.sites)
    assert len(text.split("\n")) < 60
    assert "  x32  " in text
    assert 0.005 < explained.work_per_step < 0.05


def test_layers_that_are_alike_are_one_line():
    def layers(*names):
        return nn.ModuleDict({name: nn.Linear(3, 3) for name in names})

    def lines(model):
        text = str(sngd.explain(model)).split("\n\n")[1]
        return [line.partition("  [")[0].rstrip() for line in text.split("\n")[2:]]

    assert lines(layers("0", "1", "2")) == ["{0..2}.weight + bias  x3"]
    assert lines(layers("0", "2", "4")) == ["{0..4..2}.weight + bias  x3"]
    assert lines(layers("0", "2")) == ["{0,2}.weight + bias  x2"]
    assert lines(layers("3", "0", "7", "1")) == ["{0,1,3,7}.weight + bias  x4"]
    assert lines(layers("a", "01", "1")) == [f"{n}.weight + bias" for n in ("a", "01", "1")]
    long = ["1" * 5000, "2" * 5000]
    assert lines(layers(*long)) == [f"{name}.weight + bias" for name in long]
    assert lines(layers("²", "٣", "-1"))[-1] == "-1.weight + bias"
    experts = nn.ModuleList([layers("0", "1", "2"), layers("0", "1", "2")])
    assert lines(experts) == ["{0..1}.{0..2}.weight + bias  x6"]
    ragged = nn.ModuleList([layers("0", "1", "2"), layers("0", "1")])
    assert lines(ragged) == ["0.{0..2}.weight + bias  x3", "1.{0..1}.weight + bias  x2"]
    assert len(sngd.explain(experts).sites) == 6


def test_only_what_is_equal_is_one_line():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
    names = names_in(str(sngd.explain(model, overrides={"2.*": Config(fisher="diagonal")})))
    assert names == ["0.weight", "1.weight", "2.weight"]
    frozen = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3))).requires_grad_(False)
    text = str(sngd.explain(frozen))
    assert "{0..2}.weight  x3" in text
    assert expanded("{0..2}.weight") == [f"{i}.weight" for i in range(3)]


def test_the_first_line_of_a_trained_network_says_what_was_observed():
    class Chosen(nn.Module):
        """Uses the first of two layers."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x):
            return self.first(x) if x.sum() < 1e9 else self.second(x)

    net = sngd.reconstruct(Chosen(), EVERY_STEP)
    first = str(sngd.explain(net)).splitlines()[0]
    assert first == "reconstructed: 2 weights, 32 of 32 elements (100.0 %)"
    train(net, inputs=lambda step: batch(step, 6, 3))
    assert str(sngd.explain(net)).splitlines()[0] == f"{first}, 16 of them observed"
