"""What plain `torch.compile(fullgraph=True)` takes of the zoo, both APIs take."""

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from sngd_compile import Config

pytest.importorskip("transformers")

from zoo import ZOO, ZooCase

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("fresh"),
    pytest.mark.filterwarnings("ignore"),
]
OPTIONS = {"early_refreshes": (1, 2), "observe_every": 1, "max_rows": None}


IN_EVERY_CHECK = ("BERT", "ResNet", "U-Net", "control flow")
CASES = [
    pytest.param(
        case, id=case.name, marks=[] if case.name in IN_EVERY_CHECK else pytest.mark.nightly
    )
    for case in ZOO
]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> ZooCase:
    """One model."""
    return request.param


def losses(case: ZooCase, net: nn.Module) -> list[float]:
    """Train three steps; refreshes follow the first and the second."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    found = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = case.loss_of(net)
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def test_a_reconstructed_model_is_one_graph(case: ZooCase):
    try:
        case.loss_of(torch.compile(case.build(), backend="eager", fullgraph=True))
    except Exception as error:
        pytest.skip(f"plain torch.compile cannot: {type(error).__name__}")
    torch._dynamo.reset()
    net, eager = (sngd.reconstruct(case.build(), Config(**OPTIONS)) for _ in range(2))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    relative = 1e3 * torch.finfo(case.dtype).eps
    assert losses(case, compiled) == pytest.approx(losses(case, eager), rel=relative)


def test_the_backend_trains_it_alike_or_says_why_not(case: ZooCase):
    net = sngd.reconstruct(case.build(), Config(**OPTIONS))
    model = case.build()
    compiled = torch.compile(model, backend="sngd", options={**OPTIONS, "inner_backend": "eager"})
    found, expected = losses(case, compiled), losses(case, net)
    left = {skip.name for skip in sngd.explain(compiled).skips}
    if left <= {skip.name for skip in sngd.explain(net).skips}:
        assert found == pytest.approx(expected, rel=1e4 * torch.finfo(case.dtype).eps)
    sites = {name for site in sngd.explain(compiled).sites for name in site.parameter_names}
    owned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert sites | left == owned
    assert all(skip.reason for skip in sngd.explain(compiled).skips)
