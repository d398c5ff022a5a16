"""The memory that `explain` prints is the memory that the network holds."""

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, FISHERS, batch, mlp, train
from sngd_compile import Config
from sngd_compile.registry import ROOTS

LAYERS = {
    "linear": lambda dtype: nn.Linear(7, 3, dtype=dtype),
    "no bias": lambda dtype: nn.Linear(7, 3, bias=False, dtype=dtype),
    "conv": lambda dtype: nn.Conv2d(4, 6, (3, 2), dtype=dtype),
    "grouped": lambda dtype: nn.Conv1d(4, 6, 3, groups=2, dtype=dtype),
    "depthwise": lambda dtype: nn.Conv3d(4, 4, 1, groups=4, dtype=dtype),
}


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", LAYERS)
def test_state_bytes_are_those_of_the_buffers(kind, dtype, root):
    model, config = LAYERS[kind](dtype), Config(root=root)
    (site,) = sngd.explain(model, config).sites
    (layer,) = sngd.fisher_layers(sngd.reconstruct(model, config)).values()
    assert site.state_bytes == sum(buffer.nbytes for buffer in layer.buffers())
    assert site.parameter_count == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("root", ROOTS)
def test_training_takes_no_more_memory(root):
    net = sngd.reconstruct(mlp(), EVERY_STEP.replace(root=root))
    before = sum(buffer.nbytes for buffer in net.buffers())
    train(net)
    assert before == sum(buffer.nbytes for buffer in net.buffers())
    assert before == sum(site.state_bytes for site in sngd.explain(net).sites)


def test_work_grows_with_the_layer():
    small, large = (sngd.explain(nn.Linear(k, 3)).sites[0] for k in (8, 16))
    assert large.step_work == 4 * small.step_work == 2 * 3 * 16**2
    assert 4 < large.refresh_work / small.refresh_work < 8


def data_of(model):
    return {site["name"]: site for site in sngd.explain(model).to_dict()["sites"]}


class Parts(nn.Module):
    """Looks up a table, convolves in groups, multiplies, and has a weight that is never used."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1, groups=2)
        self.out, self.idle = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x):
        return self.out(self.conv(self.table(x).mT).mT)


def tokens(step, size=7):
    return torch.arange(size * 4).reshape(size, 4).add(step).remainder(11)


@pytest.mark.parametrize("rows", [1, 30])
def test_what_is_added_beside_the_layers_own_work(rows):
    config = EVERY_STEP.replace(refresh_every=3, observe_every=2)
    net = sngd.reconstruct(nn.Linear(6, 4, bias=False), config)
    train(net, steps=6, inputs=lambda step: batch(step, rows, 6))
    found = data_of(net)["weight"]
    assert found["rows_per_step"] == rows
    assert found["own_work"] == 3 * rows * 6 * 4
    # On the cheaper side, there and back: of one row it is the row.
    assert found["added_by_root"] == pytest.approx(2 * 6 * 6 * min(rows, 4))
    assert found["added_by_observation"] == rows * 6**2 // 2 / 2
    assert found["added_by_refresh"] == pytest.approx(found["refresh_work"] / 3)
    added = sum(value for key, value in found.items() if key.startswith("added_by"))
    assert found["added_ratio"] == pytest.approx(added / found["own_work"])
    assert not found["is_at_most"]


def test_what_is_not_known_is_none():
    net = sngd.reconstruct(Parts(), EVERY_STEP)
    planned, fresh = data_of(Parts()), data_of(net)
    train(net, steps=2, inputs=tokens)
    trained = data_of(net)
    for found in (*planned.values(), *fresh.values(), trained["idle.weight"]):
        unknown = {key for key, value in found.items() if value is None}
        assert unknown >= {"rows_per_step", "own_work", "added_by_root", "added_ratio"}
        assert found["added_by_refresh"] > 0
    assert trained["table.weight"]["own_work"] == 0  # and nothing can be measured by that
    assert trained["table.weight"]["added_ratio"] is None
    assert trained["table.weight"]["rows_per_step"] == 28
    assert trained["conv.weight"]["own_work"] == 3 * 28 * 8 * 9
    assert trained["conv.weight"]["added_by_observation"] == 2 * (28 * 10**2 // 2)
    # A convolution folds its weight, however few its rows are.
    assert trained["conv.weight"]["added_by_root"] == net.conv.weight.numel() * 2 * 9


def test_the_roots_of_all_layers_are_the_total():
    net = sngd.reconstruct(Parts(), EVERY_STEP)
    train(net, steps=3, inputs=tokens)
    found = [site for site in data_of(net).values() if site["own_work"]]
    roots, own = (sum(site[key] for site in found) for key in ("added_by_root", "own_work"))
    assert sngd.explain(net).work_per_step == pytest.approx(roots / own)


def test_rows_that_were_left_out_make_it_a_bound():
    for most, is_at_most in ((None, False), (8, False), (7, True), (3, True)):
        config = EVERY_STEP.replace(max_rows=most)
        net = sngd.reconstruct(nn.Linear(5, 4), config)
        train(net, steps=2)
        found = data_of(net)["weight"]
        assert found["is_at_most"] is is_at_most
        assert found["rows_per_step"] == min(7, most or 7)


def test_each_kind_counts_its_own_observation():
    layer, work = nn.Linear(5, 4, bias=False), {}
    for kind, config in FISHERS.items():
        net = sngd.reconstruct(layer, config)
        train(net, steps=1)
        work[kind] = data_of(net)["weight"]["added_by_observation"]
    assert work["diagonal"] == 7 * 5
    assert work["block"] < work["shared"] == 7 * 5**2 // 2
    assert work["kronecker"] == 7 * (5**2 + 4**2) // 2
    assert work["unit"] == 4 * work["shared"]
