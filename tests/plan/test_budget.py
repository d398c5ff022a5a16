"""All Fisher layers of a network keep to one budget of memory, the largest give way first."""

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import apart, batch, train
from sngd_compile import Config
from sngd_compile.registry import KINDS, ROOTS

PLENTY = Config(memory_budget=2**62)


def wide() -> nn.Sequential:
    """A narrow layer, two of one shape, and the widest, without biases."""
    sizes = ((5, 300), (300, 300), (300, 300), (300, 7), (500, 7))
    return nn.Sequential(*(nn.Linear(width, outputs, bias=False) for width, outputs in sizes))


def forms(model, config=None, **kwargs):
    """Kind and rank of each site."""
    sites = sngd.explain(model, config, **kwargs).sites
    return [(site.kind, site.spec.rank) for site in sites]


def bytes_of(net):
    layers = {id(layer): layer for layer in sngd.fisher_layers(net).values()}.values()
    return sum(buffer.nbytes for layer in layers for buffer in layer.buffers())


EXACT, SKETCH = ("shared", 0), ("sketch", 48)
FULL = [EXACT, SKETCH, SKETCH, SKETCH, SKETCH]


def test_what_fits_stays_to_the_byte():
    need = sngd.explain(wide(), PLENTY).state_bytes
    assert forms(wide()) == forms(wide(), Config(memory_budget=need)) == FULL
    lowered = forms(wide(), Config(memory_budget=need - 1))
    assert lowered == [*FULL[:-1], ("sketch", 24)]


def test_the_largest_gives_way_and_of_equals_the_first():
    need = sngd.explain(wide(), PLENTY).state_bytes
    of_largest = sngd.explain(nn.Linear(500, 7, bias=False)).state_bytes
    config = Config(memory_budget=need - of_largest * 6 // 10)
    assert forms(wide(), config) == [EXACT, ("sketch", 24), SKETCH, SKETCH, ("sketch", 24)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True])
def test_every_budget_is_kept_until_diagonals_are_left(kind, bias):
    model = nn.Sequential(
        *(part for width in (3, 9, 60, 210) for part in (nn.Linear(width, 11, bias), nn.ReLU()))
    )
    least = sngd.explain(model, Config(fisher="diagonal")).state_bytes
    most = sngd.explain(model, PLENTY.replace(fisher=kind)).state_bytes
    last = most
    for part in range(40, -1, -1):
        budget = least + (most - least) * part**2 // 1600
        config = Config(fisher=kind, memory_budget=budget)
        explained = sngd.explain(model, config)
        assert explained.state_bytes <= min(budget, last)
        assert str(explained) == str(sngd.explain(model, config))
        assert "That is above" not in str(explained)
        last = explained.state_bytes
    assert {site.kind for site in explained.sites} == {"diagonal"}


@pytest.mark.parametrize("budget", [0, 1])
def test_what_even_diagonals_exceed_is_said_once(budget):
    config = Config(memory_budget=budget)
    explained = sngd.explain(wide(), config)
    assert forms(wide(), config) == [("diagonal", 0)] * 5
    text = f"That is above memory_budget = {budget} bytes: raise it"
    assert str(explained).count(text) == 1
    net = sngd.reconstruct(wide(), config)
    assert str(sngd.explain(net)) == str(explained)
    assert bytes_of(net) == explained.state_bytes


def test_a_network_at_no_budget_trains():
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    net = sngd.reconstruct(model, Config(memory_budget=0, early_refreshes=(1,)))
    train(net)
    assert {layer.kind for layer in sngd.fisher_layers(net).values()} == {"diagonal"}
    assert apart(net, sngd.fold(net)) < 1e-5


def test_the_note_says_what_was_done_and_what_to_set():
    config = Config(memory_budget=4 * 10**5)
    notes = {site.name: site.note for site in sngd.explain(wide(), config).sites}
    assert not notes["0.weight"]
    done = "sketch 500 of rank 48 (299.7 KiB) gave way to sketch 500 of rank 12 (71.6 KiB): all"
    assert notes["4.weight"].startswith(done)
    for name in ("1.weight", "4.weight"):
        assert "memory_budget = 400,000 bytes; raise it" in notes[name]


@pytest.mark.parametrize("config", [Config(rank=None), *(Config(root=r) for r in ROOTS)])
def test_exact_factors_that_do_not_fit_are_sketches_all_the_same(config):
    model = nn.Linear(300, 20)
    (site,) = sngd.explain(model, config.replace(memory_budget=2 * 10**5)).sites
    assert (site.kind, site.spec.rank, site.spec.root) == ("sketch", 48, config.root)
    asked_for = config.rank is None or config.root != Config.root
    assert ("shared 301" in site.note) == asked_for
    (site,) = sngd.explain(model, config.replace(rank=100, memory_budget=10**5)).sites
    assert site.spec.rank == 25


def test_exact_factors_give_way_before_ranks():
    exact = Config(rank=None, memory_budget=900_000)
    overrides = {"1.*": exact.replace(rank=48)}
    model = nn.Sequential(nn.Linear(200, 3, bias=False), nn.Linear(950, 3, bias=False))
    # The sketch is the larger of the two.
    assert sngd.explain(model[0], Config(rank=None)).state_bytes < 540_000
    assert sngd.explain(model[1]).state_bytes > 540_000
    assert forms(model, exact, overrides=overrides) == [SKETCH, SKETCH]


def test_ranks_are_halved_down_to_eight():
    layer = nn.Linear(300, 3)
    found = {forms(layer, Config(memory_budget=part * 4096))[0] for part in range(60)}
    assert found == {SKETCH, ("sketch", 24), ("sketch", 12), ("sketch", 8), ("diagonal", 0)}
    least = sngd.explain(layer, Config(rank=4)).state_bytes
    assert forms(layer, Config(rank=4, memory_budget=least - 1)) == [("diagonal", 0)]
    assert forms(layer, Config(rank=4, memory_budget=least)) == [("sketch", 4)]


def test_each_weight_gives_way_to_the_budget_of_its_own_configuration():
    small = Config(memory_budget=0)
    found = forms(wide(), small, overrides={"2.*": PLENTY, "3.*": None})
    assert found == [("diagonal", 0), ("diagonal", 0), SKETCH, ("diagonal", 0)]
    assert "budget = 0 bytes: raise" in str(sngd.explain(wide(), small, overrides={"2.*": PLENTY}))


def test_a_shared_weight_counts_once_and_a_frozen_one_not_at_all():
    model = wide()
    model[2].weight = model[1].weight
    model[4].weight.requires_grad_(False)
    alone = [sngd.explain(model[index]).state_bytes for index in (0, 1, 3)]
    assert sngd.explain(model, Config(memory_budget=sum(alone))).state_bytes == sum(alone)
    lowered = sngd.explain(model, Config(memory_budget=sum(alone) - 1))
    assert [bool(site.note) for site in lowered.sites] == [False, True, False]
    net = sngd.reconstruct(model, Config(memory_budget=sum(alone) - 1))
    assert str(sngd.explain(net)) == str(lowered)
    assert bytes_of(net) == lowered.state_bytes


@pytest.mark.parametrize("budget", [10**4, 10**5, 5 * 10**5])
def test_files_and_copies_have_the_same_plan(budget):
    config = Config(memory_budget=budget, early_refreshes=(1,))
    layers = (nn.Linear(5, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 3))
    model = nn.Sequential(*layers)
    net, fresh = sngd.reconstruct(model, config), sngd.reconstruct(model, config)
    train(net, steps=2)
    fresh.load_state_dict(net.state_dict())
    assert apart(net, fresh) == 0
    assert forms(net) == forms(fresh) == forms(model, config)
    assert any(site.note for site in sngd.explain(net).sites)


def test_networks_put_together_keep_what_each_of_them_got():
    one = sngd.reconstruct(nn.Linear(300, 20), Config(memory_budget=200_000))
    other = sngd.reconstruct(nn.Linear(400, 20), Config(memory_budget=180_000))
    both = nn.Sequential(one, nn.Linear(20, 400), other)
    explained = sngd.explain(both)
    assert [(s.kind, s.spec.rank) for s in explained.sites] == [SKETCH, ("sketch", 24)]
    assert explained.state_bytes == bytes_of(both)
    assert sum(site.state_bytes for site in explained.sites) == bytes_of(both)
    # Each is within its budget, and only together are they above it.
    assert str(explained).count("That is above memory_budget = 180,000 bytes") == 1


def test_a_compiled_model_keeps_to_it_frame_by_frame():
    model = nn.Sequential(nn.Linear(300, 20), nn.Tanh(), nn.Linear(20, 3))
    options = {"inner_backend": "eager", "memory_budget": 10**5}
    compiled = torch.compile(model, backend="sngd", options=options)
    compiled(batch(width=300)).sum().backward()
    explained = sngd.explain(compiled)
    assert [(s.kind, s.spec.rank) for s in explained.sites] == [("sketch", 24), EXACT]
    assert "memory_budget = 100,000" in explained.sites[0].note
    assert explained.state_bytes == bytes_of(compiled) <= 10**5
    assert forms(model, Config(memory_budget=10**5)) == [("sketch", 24), EXACT]
