"""DistributedDataParallel and fully_shard with NCCL, in a group of one process."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sngd_compile as sngd
from device import DEVICE, SETTING, assert_same_state, train
from theorem.networks import MLP

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.skipif(not dist.is_nccl_available(), reason="needs NCCL"),
]


@pytest.fixture(scope="module", autouse=True)
def group():
    """Join a group of one."""
    torch.cuda.set_device(0)
    store = dist.HashStore()
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def nets() -> tuple[nn.Module, nn.Module]:
    """Reconstruct one model twice."""
    model = MLP().to(DEVICE)
    return sngd.reconstruct(copy.deepcopy(model), SETTING), sngd.reconstruct(model, SETTING)


@pytest.mark.parametrize("fast", [False, True], ids=["eager", "compiled"])
def test_data_parallel(fast):
    alone, net = nets()
    parallel = DistributedDataParallel(torch.compile(net) if fast else net, device_ids=[0])
    expected = train(alone, MLP.input_shape)
    assert train(net, MLP.input_shape, trained=parallel) == pytest.approx(expected, rel=1e-8)
    assert_same_state(net, alone)


def test_fully_sharded():
    alone, net = nets()
    fully_shard(net, mesh=init_device_mesh("cuda", (1,)))
    expected = train(alone, MLP.input_shape)
    assert train(net, MLP.input_shape) == pytest.approx(expected, rel=1e-8)
