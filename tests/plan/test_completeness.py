"""Every parameter of every model ends in exactly one of: a site, or a skip with a reason."""

from collections import Counter

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import mlp
from api.reports import names_in


class Tied(nn.Module):
    """An embedding whose weight the head shares."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


class SharedModule(nn.Module):
    """One layer under two names, another called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.again = self.first
        self.last = nn.Linear(5, 5)

    def forward(self, x):
        return self.last(self.last(self.again(self.first(x))))


class Bare(nn.Module):
    """Parameters without a call, without a forward, or without a size."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3, 3))
        self.listed = nn.ParameterList([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(1))])
        self.named = nn.ParameterDict({"gain": nn.Parameter(torch.zeros(()))})
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.whole = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
        self.register_parameter("absent", None)


def weight_normed():
    return nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)),
        nn.utils.parametrizations.spectral_norm(nn.Conv1d(1, 2, 3)),
        nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
    )


MODELS = {
    "mlp": mlp,
    "linear": lambda: nn.Linear(3, 2),
    "tied": Tied,
    "shared module": SharedModule,
    "bare": Bare,
    "parametrized": weight_normed,
    "recurrent": lambda: nn.ModuleList(
        [nn.LSTM(3, 4, 2), nn.GRU(3, 4, bidirectional=True), nn.RNN(3, 4), nn.LSTMCell(3, 4)]
    ),
    "attention": lambda: nn.ModuleList(
        [
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
            nn.TransformerEncoderLayer(4, 2, 6),
            nn.TransformerDecoderLayer(4, 2, 6),
        ]
    ),
    "transformer": lambda: nn.Transformer(4, 2, 1, 1, 6, batch_first=True),
    "convolutions": lambda: nn.ModuleList(
        [
            nn.Conv1d(2, 4, 3, groups=2, padding_mode="circular", padding=1),
            nn.Conv2d(2, 4, 3, padding="same", bias=False),
            nn.Conv3d(2, 4, 1),
            nn.ConvTranspose2d(2, 4, 3),
            nn.Bilinear(3, 4, 2),
        ]
    ),
    "norms": lambda: nn.ModuleList(
        [
            nn.BatchNorm2d(3),
            nn.LayerNorm(4),
            nn.GroupNorm(1, 2),
            nn.InstanceNorm1d(3, affine=True),
            nn.RMSNorm(4),
            nn.PReLU(),
        ]
    ),
    "embeddings": lambda: nn.ModuleList(
        [nn.Embedding(5, 3, padding_idx=0), nn.EmbeddingBag(5, 3, mode="sum")]
    ),
    "adaptive softmax": lambda: nn.AdaptiveLogSoftmaxWithLoss(6, 9, [3]),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyConv2d(3, 2), nn.LazyBatchNorm1d()),
    "complex": lambda: nn.Linear(3, 2, dtype=torch.complex64),
    "none": nn.ReLU,
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_every_parameter_exactly_once(kind):
    model = MODELS[kind]()
    plan = sngd.explain(model)
    planned = Counter(name for site in plan.sites for name in site.parameter_names)
    planned.update(skip.name for skip in plan.skips)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    modules = {name for name, _ in model.named_modules()}
    once = {name for name in names if name.rpartition(".")[0] in modules}
    assert planned == Counter(once)
    assert all(skip.reason for skip in plan.skips)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_text_has_every_parameter(kind):
    model = MODELS[kind]()
    plan = sngd.explain(model)
    text = str(plan)
    expected = [site.name for site in plan.sites] + [skip.name for skip in plan.skips]
    noted = [site.name for site in plan.sites if site.note]
    assert Counter(names_in(text)) == Counter(expected + noted)
    assert all(skip.reason in text for skip in plan.skips)


@pytest.mark.parametrize("kind", sorted(MODELS.keys() - {"lazy", "complex", "parametrized"}))
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_plan_needs_no_memory(kind):
    expected = str(sngd.explain(MODELS[kind]()))
    with torch.device("meta"):
        model = MODELS[kind]()
        assert str(sngd.explain(model)) == expected
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "lazy"])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_network_explains_itself_as_its_model(kind):
    model = MODELS[kind]()
    assert str(sngd.explain(sngd.reconstruct(model))) == str(sngd.explain(model))


def test_a_model_without_parameters():
    model = nn.Sequential(nn.ReLU(), nn.Flatten())
    plan = sngd.explain(model)
    assert (plan.sites, plan.skips) == ([], [])
    assert str(plan) == "no parameters: nothing to reconstruct"
    net = sngd.reconstruct(model)
    assert sngd.fisher_layers(net) == sngd.graph(net) == {}
    x = torch.randn(3, 2)
    assert torch.equal(sngd.fold(sngd.refresh_(net))(x), x.relu())
