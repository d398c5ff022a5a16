"""`nn.MultiheadAttention` obeys the laws; encoders and decoders do what the plain ones do."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jacrev

import sngd_compile as sngd
from laws import Case, every_law, factor_is_the_jacobians_moment
from laws.subject import configuration
from laws.suite import close

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]
MASK = torch.tensor([[False, True, False], [False, False, False]])


class Attention(nn.Module):
    """Attention over an input `[L, N, E]`, or over another sequence that is made of it."""

    def __init__(self, form: str = "self", **options: object):
        super().__init__()
        self.attention, self.form = nn.MultiheadAttention(4, 2, **options), form

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make query, key and value."""
        if self.form == "unbatched":
            return x[:, 0], x[:, 0], x[:, 0]
        if self.form != "cross":
            return x, x, x
        kinds = self.attention.kdim, self.attention.vdim
        key, value = (torch.cat([x, 2 * x[:2]])[..., :width].sin() for width in kinds)
        return x, key, value

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        masks = {}
        if self.form == "masked":
            masks = {"attn_mask": torch.ones(3, 3).triu(1).bool(), "key_padding_mask": MASK}
        return self.attention(*self.inputs(x), need_weights=self.form == "weights", **masks)[0]


def before_projection(model: Attention, x: Tensor) -> Tensor:
    """Return what reaches the last projection, by the function as it is: `[L, N, E]`."""
    plain = copy.deepcopy(sngd.fold(model)).train()
    plain.attention.out_proj.weight = nn.Parameter(torch.eye(4))
    if plain.attention.out_proj.bias is not None:
        plain.attention.out_proj.bias = nn.Parameter(torch.zeros(4))
    return plain(x).detach()


def rows_of(weight: str, model: Attention, x: Tensor) -> Tensor:
    """Find the rows of a projection; positions of a sequence come first if batches do."""
    if weight == "out_proj.weight":
        made = before_projection(model, x)
        made = made.transpose(0, 1) if model.attention.batch_first else made
        return made.reshape(-1, 4)
    inputs = [t if t.dim() == 3 else t[:, None] for t in model.inputs(x.detach())]
    if model.attention.batch_first:
        inputs = [t.transpose(0, 1) for t in inputs]
    rows = [t.reshape(-1, t.shape[-1]) for t in inputs]
    if weight == "in_proj_weight":
        return torch.stack(rows)
    return rows["qkv".index(weight[0])]


def case(weight: str, form: str = "self", **options: object) -> Case:
    """Describe one projection."""
    words = " ".join(f"{name}={value}" for name, value in options.items())
    has_bias = options.get("bias", True) and weight[1:] != "_proj_weight"
    return Case(
        name=f"{form} {words} {weight}",
        module=partial(Attention, form, **options),
        shape=(3, 2, 4) if not options.get("batch_first") else (2, 3, 4),
        rows=partial(rows_of, weight),
        weight=f"attention.{weight}",
        bias=f"attention.{weight.replace('weight', 'bias')}" if has_bias else None,
    )


separate = {"kdim": 3, "vdim": 2}
CASES = [
    case("in_proj_weight"),
    case("in_proj_weight", batch_first=True),
    case("in_proj_weight", "unbatched", bias=False),
    case("in_proj_weight", "masked", add_bias_kv=True),
    case("in_proj_weight", "weights", add_zero_attn=True),
    case("out_proj.weight"),
    case("out_proj.weight", "masked", bias=False, add_zero_attn=True),
    case("out_proj.weight", "weights", batch_first=True, add_bias_kv=True),
    case("out_proj.weight", "cross", **separate),
    case("q_proj_weight", "cross", **separate),
    case("k_proj_weight", "cross", **separate, add_bias_kv=True),
    case("v_proj_weight", "cross", **separate, batch_first=False),
]


@every_law(CASES, without=[factor_is_the_jacobians_moment])
def test_attention(laws):
    laws.check()


@pytest.mark.parametrize("form", ["self", "cross"])
def test_the_factor_is_that_of_the_jacobian_of_the_projections(form):
    """Law 6: projections are linear in their weights; each group has its own mean."""
    model, x = Attention(form), torch.randn(3, 2, 4)
    net = sngd.reconstruct(model, configuration("cholesky"))
    net(x)
    factor = sngd.fisher_layers(sngd.refresh_(net))["attention.in_proj_weight"].factor
    parameters = [
        p.detach() for p in (model.attention.in_proj_weight, model.attention.in_proj_bias)
    ]
    for group, rows in enumerate(model.inputs(x)):

        def projection(weight: Tensor, bias: Tensor, group: int = group, rows: Tensor = rows):
            parts = zip(weight.chunk(3), bias.chunk(3), strict=True)
            return F.linear(rows.reshape(-1, 4), *list(parts)[group])[:, 1]

        jacobians = jacrev(projection, argnums=(0, 1))(*parameters)
        channel = 4 * group + 1
        jacobian = torch.cat([jacobians[0][:, channel], jacobians[1][:, channel, None]], 1)
        close(factor[group], jacobian.T @ jacobian / len(jacobian))
    fisher = sngd.fisher_layers(net)["attention.in_proj_weight"]
    assert fisher.rows_seen == 6


@pytest.mark.parametrize("kind", ["diagonal", "a few rows"])
def test_other_statistics_of_sequences_of_two_lengths(kind):
    model, x = Attention("cross"), torch.randn(3, 2, 4)
    limits = {"memory_budget": 1} if kind == "diagonal" else {}
    net = sngd.reconstruct(model, sngd.Config(max_rows=3 if kind != "diagonal" else None, **limits))
    net(x)
    fisher = sngd.fisher_layers(sngd.refresh_(net))["attention.in_proj_weight"]
    if kind == "diagonal":
        for factor, rows in zip(fisher.factor, model.inputs(x), strict=True):
            rows = F.pad(rows.reshape(-1, 4), (0, 1), value=1.0)
            close(factor, rows.square().mean(0))
    else:
        assert fisher.rows_seen == 3
        close(fisher.factor[:, -1, -1], torch.ones(3))


def test_reasons():
    reasons = {s.name: s.reason for s in sngd.explain(Attention(kdim=3, add_bias_kv=True)).skips}
    assert "three weights" in reasons["attention.in_proj_bias"]
    assert "one more key" in reasons["attention.bias_k"] == reasons["attention.bias_v"]


def train(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Take four steps, with refreshes on the way."""
    net = sngd.reconstruct(model, configuration("cholesky"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        net(*inputs).square().mean().backward()
        optimizer.step()
    assert all(fisher.rows_seen for fisher in sngd.fisher_layers(net).values())
    return net


MODELS = {
    "layer": lambda: nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True),
    "layer, norm first": lambda: nn.TransformerEncoderLayer(4, 2, 6, norm_first=True),
    "layer without bias": lambda: nn.TransformerEncoderLayer(4, 2, 6, bias=False, batch_first=True),
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 6, activation="gelu", batch_first=True), 2
    ),
    "decoder": lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 6), 2),
    "transformer": lambda: nn.Transformer(4, 2, 1, 1, 6, batch_first=True),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_compute_the_same(kind):
    """In training with dropout; in eval, whose fast path reads the weights of every part."""
    model = MODELS[kind]()
    x = torch.randn(2, 5, 4)
    inputs = (x, torch.randn(2, 5, 4)) if kind in ("decoder", "transformer") else (x,)
    net = sngd.reconstruct(model)
    outputs = []
    for each in (net, model):
        torch.manual_seed(3)
        outputs.append(each(*inputs))
    close(*outputs)
    net = train(model, *inputs)
    plain = sngd.fold(net)
    assert type(plain) is type(model)
    assert list(plain.state_dict()) == list(model.state_dict())
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            close(net.eval()(*inputs), plain.eval()(*inputs))
    close(copy.deepcopy(net)(*inputs), plain(*inputs))


def test_the_fast_path_with_padding():
    model = MODELS["encoder"]()
    x, padding = torch.randn(2, 3, 4), MASK
    net = train(model, x).eval()
    plain = sngd.fold(net)
    with torch.no_grad():
        found, expected = (m(x, src_key_padding_mask=padding) for m in (net, plain))
    close(found[~padding], expected[~padding])


def test_it_compiles_to_one_graph():
    torch.compiler.reset()
    model, x = Attention(), torch.randn(3, 2, 4)
    net = sngd.reconstruct(model, configuration("cholesky"))
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    close(compiled(x), model(x))
    assert {fisher.rows_seen for fisher in sngd.fisher_layers(net).values()} == {6}
