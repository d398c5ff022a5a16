"""The memory that `explain` prints is the memory that the network holds."""

from typing import get_args

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, mlp, train
from sngd_compile import Config
from sngd_compile.config import RootKind
from sngd_compile.plan.cost import refresh_work, step_work

LAYERS = {
    "linear": lambda dtype: nn.Linear(7, 3, dtype=dtype),
    "no bias": lambda dtype: nn.Linear(7, 3, bias=False, dtype=dtype),
    "conv": lambda dtype: nn.Conv2d(4, 6, (3, 2), dtype=dtype),
    "grouped": lambda dtype: nn.Conv1d(4, 6, 3, groups=2, dtype=dtype),
    "depthwise": lambda dtype: nn.Conv3d(4, 4, 1, groups=4, dtype=dtype),
}


@pytest.mark.parametrize("root", get_args(RootKind))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", LAYERS)
def test_state_bytes_are_those_of_the_buffers(kind, dtype, root):
    model, config = LAYERS[kind](dtype), Config(root=root)
    (site,) = sngd.explain(model, config).sites
    (layer,) = sngd.fisher_layers(sngd.reconstruct(model, config)).values()
    assert site.state_bytes == sum(buffer.nbytes for buffer in layer.buffers())
    assert site.parameter_count == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("root", get_args(RootKind))
def test_training_takes_no_more_memory(root):
    net = sngd.reconstruct(mlp(), EVERY_STEP.replace(root=root))
    before = sum(buffer.nbytes for buffer in net.buffers())
    train(net)
    assert before == sum(buffer.nbytes for buffer in net.buffers())
    assert before == sum(site.state_bytes for site in sngd.explain(net).sites)


def test_work_grows_with_the_layer():
    small, large = (sngd.explain(nn.Linear(k, 3)).sites[0] for k in (8, 16))
    assert step_work(large) == 4 * step_work(small) == 3 * 16**2
    assert 4 < refresh_work(large) / refresh_work(small) < 8
