"""One of several processes that train the same network on parts of each batch."""

import json
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sngd_compile as sngd
from backend.compiled import SETTING, compiled, mlp, sample


class Own(nn.Module):
    """A class of the user's: around one, Dynamo captures what DistributedDataParallel runs."""

    def __init__(self):
        super().__init__()
        self.layers = mlp()

    def forward(self, x):
        """Classify `[N, 5]`."""
        return self.layers(x)


INNER = {compiled: "inner", torch.compile: "backend"}
STEPS = 8  # the last one is followed by a refresh, which adds the rows up


def shard_(net: nn.Module, size: int, layers: bool) -> nn.Module:
    """Cut a network into parts, or each of its layers."""
    mesh = init_device_mesh("cpu", (size,))
    for layer in [m for m in net if isinstance(m, nn.Linear)] if layers else []:
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def setting(kind: str) -> sngd.Config:
    """Return the configuration; of a kronecker one the damping is in no unit of the gradients."""
    two_sided = SETTING.replace(fisher="kronecker", damping_abs=1.0)
    return two_sided if "kronecker" in kind else SETTING


def prepare(kind: str, size: int) -> tuple[nn.Module, nn.Module]:
    """Return the network and what is trained; alone, the network as it is."""
    net = Own() if kind == "backend_around_own" else mlp()
    if "backend" not in kind:
        net = sngd.reconstruct(net, setting(kind))
    compile_net = compiled if "backend" in kind else torch.compile
    trained = net
    if "sharded" in kind:
        shard_(net, size, "layers" in kind)
    if kind in ("compiled", "backend", "sharded_compiled", "sharded_backend"):
        trained = compile_net(trained, **{INNER[compile_net]: "aot_eager"})
    if "sharded" not in kind and size > 1:
        trained = DistributedDataParallel(trained)
    if "around" in kind:
        trained = compile_net(trained, **{INNER[compile_net]: "aot_eager"})
    return net, trained


def whole(net: nn.Module, kind: str) -> nn.Module:
    """Gather the parts of a network in every process."""
    if "sharded" not in kind or not dist.is_initialized():
        return net
    state = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))
    alone = sngd.reconstruct(mlp(), setting(kind))
    alone.load_state_dict(state)
    return alone


def main(kind: str, rank: int, size: int, meeting: str) -> None:
    """Train; print the weights."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    net, trained = prepare(kind, size)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        inputs, labels = sample((5,), step, 12)
        optimizer.zero_grad()
        shard = slice(rank, None, size)
        F.cross_entropy(trained(inputs[shard]), labels[shard]).backward()
        optimizer.step()
    plain = sngd.fold(whole(net, kind))
    rows = [layer.rows_seen for layer in sngd.fisher_layers(net).values()]
    # Names apart: DistributedDataParallel puts one in front.
    numbers = list(sngd.metrics(trained).values())
    print(json.dumps([[p.flatten().tolist() for p in plain.parameters()], rows, numbers]))
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
