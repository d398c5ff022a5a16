"""`root="auto"`: a root for each layer by device, size and damping."""

import copy
import io
import math

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, mlp, train
from sngd_compile import Config
from sngd_compile.plan.root_choice import FEW_LAUNCHES, LARGEST_WARM_CONDITION, choose_root
from sngd_kernels.dispatch import LIMITS

pytestmark = pytest.mark.usefixtures("float64")

AUTO = EVERY_STEP.replace(root="auto")
GPU, LIMIT = torch.device("cuda"), LARGEST_WARM_CONDITION
CHOICES = [
    (GPU, FEW_LAUNCHES, 10.0, "cholesky", "a launch or two"),
    (GPU, FEW_LAUNCHES + 1, 10.0, "warm", "products suit a GPU"),
    (GPU, FEW_LAUNCHES + 1, LIMIT, "warm", "products suit a GPU"),
    (GPU, FEW_LAUNCHES + 1, math.nextafter(LIMIT, math.inf), "cholesky", "1e+04 only"),
    (GPU, 5000, math.inf, "cholesky", "by inf only"),
    (GPU, 1, math.inf, "cholesky", "a launch or two"),
    (torch.device("cuda:3"), 5000, 1001.0, "warm", "5000 is wide"),
    *(
        (torch.device(name), size, 10.0, "cholesky", "where there is no GPU")
        for name in ("cpu", "meta", "mps")
        for size in (1, 5000)
    ),
]


@pytest.mark.parametrize(("device", "size", "condition", "root", "reason"), CHOICES)
def test_device_size_and_condition_choose(device, size, condition, root, reason):
    chosen, why = choose_root(device, size, condition)
    assert chosen == root
    assert reason in why


def test_the_largest_factor_at_once_is_the_kernels():
    assert LIMITS["cholesky_inverse"].largest == FEW_LAUNCHES


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Let weights be taken for those of a GPU where their roots are chosen."""

    def there(device, size, condition):
        asked.append((size, condition))
        return choose_root(GPU, size, condition)

    asked = []
    monkeypatch.setattr("sngd_compile.plan.root_choice.choose_root", there)
    return asked


WEAK, WIDE = {"damping_rel_trace": 1e-5}, {"fisher": "block", "block_size": 100}
LAYERS = [
    (lambda: nn.Linear(127, 300), {}, (128, 1001), "cholesky"),
    (lambda: nn.Linear(128, 3), {}, (129, 1001), "warm"),
    (lambda: nn.Linear(200, 3, bias=False), {"damping_rel_trace": 1.0}, (200, 2), "warm"),
    (lambda: nn.Linear(200, 3), WEAK, (201, 1e5 + 1), "cholesky"),
    (lambda: nn.Linear(200, 3), {"damping_rel_trace": 0.0}, (201, math.inf), "cholesky"),
    (lambda: nn.Linear(200, 3), WIDE, (101, 1001), "cholesky"),
    (lambda: nn.Linear(200, 3), {"fisher": "unit", "activation": "relu"}, (201, 3001), "warm"),
    (lambda: nn.Conv1d(300, 20, 1, groups=2), {}, (151, 2001), "warm"),
    (lambda: nn.Linear(3, 400), {"fisher": "kronecker"}, (400, 10_001), "warm"),
    (
        lambda: nn.Linear(399, 3),
        {"fisher": "kronecker"},
        (400, 1e3 * (400 / 3) ** 0.5 + 1),
        "cholesky",
    ),
]


@pytest.mark.parametrize(("layer", "config", "asked", "root"), LAYERS)
def test_a_layer_asks_by_its_largest_factor_and_its_damping(layer, config, asked, root, on_a_gpu):
    config = AUTO.replace(**config)
    (site,) = sngd.explain(layer(), config).sites
    assert on_a_gpu == [pytest.approx(asked, rel=1e-12)]
    assert site.config.root == root
    assert f'root = "auto" takes {root}: ' in site.note


@pytest.mark.parametrize("size", [(5, 3), (30, 4), (3, 30)])
@pytest.mark.parametrize("fisher", ["shared", "unit", "kronecker"])
def test_the_condition_of_a_damped_factor_is_within_the_bound(size, fisher, on_a_gpu):
    config = AUTO.replace(fisher=fisher, activation="relu", max_rows=None)
    net = sngd.reconstruct(nn.Linear(*size), config)
    net(torch.ones(9, size[0]) * 100).square().mean().backward()
    ((_, bound),) = on_a_gpu
    sngd.refresh_(net)
    for damped, _ in net.weight_fisher.damped():
        condition = torch.linalg.cond(damped).max()
        assert condition <= bound * (1 + 1e-9)
        worst = condition if fisher == "shared" else bound
    assert worst > 0.9 * bound


def test_what_has_no_such_root_asks_for_none(on_a_gpu):
    plan = sngd.explain(mlp(), AUTO.replace(fisher="diagonal"))
    assert on_a_gpu == []
    assert 'root = "auto"' not in str(plan)
    train(sngd.reconstruct(mlp(), AUTO.replace(fisher="diagonal")))


@pytest.mark.parametrize("fisher", ["shared", "block", "unit", "kronecker"])
def test_on_a_cpu_it_is_cholesky_to_the_last_bit(fisher):
    nets = []
    for root in ("auto", "cholesky"):
        torch.manual_seed(3)
        nets.append(sngd.reconstruct(mlp(), EVERY_STEP.replace(root=root, fisher=fisher)))
        train(nets[-1])
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(one, other)


def test_the_plan_of_a_network_keeps_what_was_chosen_where_it_was_made(on_a_gpu, monkeypatch):
    model = nn.Sequential(nn.Linear(150, 4), nn.Linear(4, 3))
    plan, net = sngd.explain(model, AUTO), sngd.reconstruct(model, AUTO)
    monkeypatch.undo()
    net.to("cpu")
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for each in (net, copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert str(sngd.explain(each)) == str(plan)
        roots = [layer.config.root for layer in sngd.fisher_layers(each).values()]
        assert roots == ["warm", "cholesky"]
        train(each, inputs=lambda step: torch.randn(9, 150))
    assert 'root = "auto" takes warm' in str(sngd.explain(net))
    assert "of 3 roots were a step from the one before" in str(sngd.explain(net))


def test_a_compiled_model_takes_and_reports_it():
    torch._dynamo.reset()
    options = {"root": "auto", "inner_backend": "eager"}
    net = torch.compile(nn.Linear(5, 3), backend="sngd", options=options)
    train(net)
    assert 'root = "auto" takes cholesky' in str(sngd.explain(net))
    assert sngd.fisher_layers(net)["weight"].config.root == "cholesky"


def test_overrides_choose_for_some(on_a_gpu):
    model = nn.Sequential(nn.Linear(150, 140), nn.Linear(140, 3))
    plan = sngd.explain(model, Config(), overrides={"1.*": AUTO})
    assert [site.config.root for site in plan.sites] == ["cholesky", "warm"]
    assert len(on_a_gpu) == 1
