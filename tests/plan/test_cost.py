"""The memory that `explain` prints is the memory that the network holds."""

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, mlp, train
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
