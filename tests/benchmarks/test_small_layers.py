"""The benchmark of small layers runs, and compares what it says."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import sngd_compile as sngd
from interleave import CYCLE
from steps.small_layers import SMALL, WORKLOADS, Workload, measure, trainee


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and labels."""
    while True:
        yield torch.randn(6, 4), torch.randint(10, (6,))


TINY = Workload(
    "tiny", lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 10)), batches
)


def test_only_the_small_layers_are_left_out():
    for workload in (TINY, *WORKLOADS):
        layers = [sngd.fisher_layers(trainee(workload, some).network) for some in (True, False)]
        left_out = layers[0].keys() - layers[1].keys()
        plan = {site.name: site.rule for site in sngd.explain(workload.build()).sites}
        assert left_out == {name for name, rule in plan.items() if rule in SMALL} != set()


def test_the_ratio_is_one_of_step_times():
    ratio = measure(TINY, CYCLE)
    assert 0 < ratio.low <= ratio.mean <= ratio.high
