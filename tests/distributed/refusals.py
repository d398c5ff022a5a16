"""What is refused around `fully_shard`: print the messages by name."""

import json
import sys
from collections.abc import Callable

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import sngd_compile as sngd
from backend.compiled import mlp


def message(call: Callable[[], object]) -> str:
    """Return what a ModelError says."""
    try:
        call()
    except sngd.ModelError as error:
        return str(error)
    return "nothing was refused"


def main(meeting: str) -> None:
    """Try them in one process."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    plane = init_device_mesh("cpu", (1, 1), mesh_dim_names=("copies", "parts"))
    sharded = fully_shard(mlp(), mesh=mesh)
    net = fully_shard(sngd.reconstruct(mlp()), mesh=mesh)
    other = sngd.reconstruct(mlp())
    calls = {
        "reconstruct": lambda: sngd.reconstruct(sharded),
        "fold": lambda: sngd.fold(net),
        "read": lambda: net[0].bias,
        "mesh": lambda: fully_shard(other, mesh=plane),
    }
    print(json.dumps({name: message(call) for name, call in calls.items()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[4])
