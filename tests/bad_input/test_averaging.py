"""What is no copy of a network cannot follow it, and the error says so."""

import pytest
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, mlp

WRONG = {
    "no module": (lambda net: 3, "expected a torch.nn.Module, got int"),
    "an ordinary one": (lambda net: mlp(), r"average the weights of sngd.fold\(net\)"),
    "itself": (lambda net: net, r"0.weight: a network cannot follow itself"),
    "of another width": (
        lambda net: sngd.reconstruct(nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3))),
        r"0.weight \(4, 5\), shared, and 0.weight \(9, 5\)",
    ),
    "of another Fisher": (
        lambda net: sngd.reconstruct(mlp(), EVERY_STEP.replace(fisher="diagonal")),
        "another local Fisher",
    ),
    "of fewer layers": (
        lambda net: sngd.reconstruct(mlp(), EVERY_STEP, overrides={"2.*": None}),
        "has 1 reconstructed weights, the network 2",
    ),
}


@pytest.mark.parametrize(("make", "text"), WRONG.values(), ids=WRONG)
def test_what_cannot_follow(make, text):
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    with pytest.raises(sngd.ModelError, match=text):
        sngd.follow(make(net), net)
