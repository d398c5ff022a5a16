"""The benchmark of `metrics` and the training of its picture run."""

import torch
from torch import nn

from micro.metrics_cost import TIMED, measure
from micro.metrics_over_time import PANELS, curves, draw
from workloads import Workload


def test_each_call_is_timed():
    workload = Workload("tiny", lambda: nn.Linear(4, 10), (4,), 6, bar=1.0)
    layers, times = measure(workload, torch.device("cpu"))
    assert layers == 1
    assert [len(of_call) for of_call in times] == [TIMED] * 4


def test_every_weight_has_a_curve_in_each_panel(tmp_path):
    found = curves(3)
    for metric in PANELS:
        weights = found[metric].keys() - {"total"}
        assert len(weights) == 4
        assert all(len(found[metric][weight]) == 3 for weight in weights)
    draw(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
