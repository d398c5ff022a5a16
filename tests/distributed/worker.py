"""One of several processes that train the same network on parts of each batch."""

import json
import sys

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import sngd_compile as sngd
from backend.compiled import SETTING, compiled, mlp, sample

STEPS = 8  # the last one is followed by a refresh, which adds the rows up


def network(kind: str):
    """Return the model and what is trained."""
    model = mlp()
    if kind == "backend":
        return model, compiled(model, "aot_eager")
    two_sided = SETTING.replace(fisher="kronecker", damping_abs=1.0)
    net = sngd.reconstruct(model, two_sided if kind == "kronecker" else SETTING)
    return net, torch.compile(net, backend="aot_eager") if kind == "compiled" else net


def main(kind: str, rank: int, size: int, meeting: str) -> None:
    """Train; print the weights."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    net, trained = network(kind)
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size
        )
        trained = DistributedDataParallel(trained)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        inputs, labels = sample((5,), step, 12)
        optimizer.zero_grad()
        shard = slice(rank, None, size)
        F.cross_entropy(trained(inputs[shard]), labels[shard]).backward()
        optimizer.step()
    plain = sngd.fold(net)
    rows = [layer.rows_seen for layer in sngd.fisher_layers(net).values()]
    print(json.dumps([[p.flatten().tolist() for p in plain.parameters()], rows]))
    if size > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
