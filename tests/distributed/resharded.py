"""Checkpoints of torch.distributed.checkpoint that other numbers of processes go on from.

Print by name how far the folded weights are from those of one process on the joint batches.
"""

import gc
import json
import multiprocessing
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

import sngd_compile as sngd
from backend.compiled import mlp

SIZES = (4, 2, 1, 2, 4)  # processes, one number after the other
STEPS = 4  # of each of them
SETTING = sngd.Config(refresh_every=6, observe_every=2, max_rows=None, damping_abs=0.1)
# The local Fisher, the decay of weights (with some, biases are parted from them), the momentum.
CASES = {
    "shared": ("shared", 0.0, 0.0),
    "momentum": ("shared", 0.0, 0.9),
    "parted": ("kronecker", 0.1, 0.9),
}


def start(case: str) -> nn.Module:
    """Return the same network everywhere."""
    torch.manual_seed(0)
    return sngd.reconstruct(mlp(), SETTING.replace(fisher=CASES[case][0]))


def descent(net: nn.Module, case: str) -> Optimizer:
    """Return the optimizer."""
    _, decay, momentum = CASES[case]
    weights = [p for name, p in net.named_parameters() if not name.endswith("bias")]
    biases = [p for name, p in net.named_parameters() if name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": decay}, {"params": biases}]
    return SGD(groups, lr=0.02, momentum=momentum)


def states(net: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return all that a file holds, the optimizer's first: it says which biases are parted."""
    of_optimizer = get_optimizer_state_dict(net, optimizer)
    return {"optimizer": of_optimizer, "net": get_model_state_dict(net)}


def train(net: nn.Module, optimizer: Optimizer, rank: int, size: int, steps: range) -> None:
    """Train on uneven parts of the batches; the gradient is that of the mean over all rows."""
    for step in steps:
        everything = torch.randn(11, 5, generator=torch.Generator().manual_seed(step))
        cuts = sorted((5 * step + 3 * other) % 12 for other in range(1, size))
        rows = everything[slice(*[0, *cuts, 11][rank : rank + 2])]
        optimizer.zero_grad()
        (net(rows).square().sum() * size / 11).backward()
        optimizer.step()
    optimizer.zero_grad()


def together(case: str, way: str, rank: int, size: int, number: int, folder: Path) -> list[float]:
    """Go on from the files of the last processes, and write some."""
    dist.init_process_group("gloo", f"file://{folder}/meet {number}", rank=rank, world_size=size)
    net = start(case)
    trained = net
    if way == "sharded":
        trained = fully_shard(net, mesh=init_device_mesh("cpu", (size,)))
    elif size > 1:
        trained = DistributedDataParallel(net)
    optimizer = descent(net, case)
    if number:
        loaded = states(net, optimizer)
        dcp.load(loaded, checkpoint_id=folder / str(number - 1))
        set_model_state_dict(net, loaded["net"])
        set_optimizer_state_dict(net, optimizer, loaded["optimizer"])
    first = number * STEPS
    train(trained, optimizer, rank, size, range(first, first + STEPS))
    others = dist.new_group(backend="gloo")  # it talks while training does
    saved = dcp.async_save(
        states(net, optimizer), checkpoint_id=folder / str(number), process_group=others
    )
    # The file holds what there was when it was asked for.
    train(trained, optimizer, rank, size, range(99, 102))
    saved.result()
    whole = start(case)
    if number:
        dist.barrier()
        other = descent(whole, case)
        loaded = states(whole, other)
        dcp.load(loaded, checkpoint_id=folder / str(number))
        set_model_state_dict(whole, loaded["net"])
    dist.destroy_process_group()
    return [x for p in sngd.fold(whole).parameters() for x in p.flatten().tolist()]


def process(cases: list[str], rank: int, folder: Path, everyone: Barrier) -> None:
    """Write what one process found."""
    torch.set_default_dtype(torch.float64)
    found = {}
    try:
        for case in cases:
            for way in ("parallel", "sharded"):
                place = folder / f"{case} {way}"
                place.mkdir(exist_ok=True)
                for number, size in enumerate(SIZES):
                    if rank < size:
                        found[case, way] = together(case, way, rank, size, number, place)
                    everyone.wait(timeout=120)
    except BaseException:
        everyone.abort()  # nobody waits for it
        raise
    gaps = {}
    for case, way in found:
        net = start(case)
        train(net, descent(net, case), 0, 1, range(STEPS * len(SIZES)))
        expected = [x for p in sngd.fold(net).parameters() for x in p.flatten().tolist()]
        gap = (torch.tensor(found[case, way]) - torch.tensor(expected)).abs().max()
        gaps[f"{case}, {way}"] = float(gap)
    (folder / f"{rank}.json").write_text(json.dumps(gaps))


def main(cases: list[str], folder: Path) -> None:
    """Print what each process found."""
    folder.mkdir()
    start("shared")  # what is imported on first use is imported once
    gc.freeze()  # nor do processes look through what they inherit
    context = multiprocessing.get_context("fork")
    everyone = context.Barrier(max(SIZES))
    processes = [
        context.Process(target=process, args=(cases, rank, folder, everyone))
        for rank in range(max(SIZES))
    ]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    assert not any(each.exitcode for each in processes)
    print(json.dumps([json.loads((folder / f"{r}.json").read_text()) for r in range(max(SIZES))]))


if __name__ == "__main__":
    main([sys.argv[1]] if sys.argv[1] in CASES else list(CASES), Path(sys.argv[4]))
