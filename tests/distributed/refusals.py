"""What is refused of parts of networks and of their parameters: print the messages by name."""

import json
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import sngd_compile as sngd
from backend.compiled import mlp


def message(call: Callable[[], object]) -> str:
    """Return what a ModelError says."""
    try:
        call()
    except (sngd.ModelError, RuntimeError) as error:
        return str(error.__cause__ or error)  # a schedule puts an error of its own around ours
    return "nothing was refused"


TWO_SIDED = sngd.Config(fisher="kronecker")


def step_of_pipeline(stage: torch.nn.Module) -> None:
    """Take a step of a schedule with one stage."""
    alone = PipelineStage(stage, 0, 1, torch.device("cpu"))
    schedule = ScheduleGPipe(alone, 2, loss_fn=torch.nn.functional.mse_loss)
    schedule.step(torch.randn(4, 5), target=torch.randn(4, 3))


def main(meeting: str) -> None:
    """Try them in one process."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    sharded = fully_shard(mlp(), mesh=mesh)
    net = fully_shard(sngd.reconstruct(mlp()), mesh=mesh)
    other = sngd.reconstruct(mlp())
    calls = {
        "reconstruct": lambda: sngd.reconstruct(sharded),
        "fold": lambda: sngd.fold(net),
        "read": lambda: net[0].bias,
        "colwise": lambda: parallelize_module(other, mesh, {"0": ColwiseParallel()}),
        "rowwise": lambda: parallelize_module(other, mesh, {"2": RowwiseParallel()}),
        "by hand": lambda: distribute_module(other, mesh),
        "cut before": lambda: sngd.reconstruct(
            parallelize_module(mlp(), mesh, {"0": ColwiseParallel()})
        ),
        "compiled stage": lambda: step_of_pipeline(
            torch.compile(sngd.reconstruct(mlp(), TWO_SIDED), backend="aot_eager")
        ),
        "stage": lambda: step_of_pipeline(sngd.reconstruct(mlp(), TWO_SIDED)),
    }
    print(json.dumps({name: message(call) for name, call in calls.items()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[4])
