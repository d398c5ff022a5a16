"""Further ways to train on several processes: print how far each is from one process alone."""

import json
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import sngd_compile as sngd

CONFIG = sngd.Config(
    refresh_every=3, observe_every=1, max_rows=None, early_refreshes=(1,), damping_abs=0.1
)
KINDS = {
    "shared": CONFIG,
    "of a gain of one": CONFIG.replace(unit_gain=True),
    "kronecker": CONFIG.replace(fisher="kronecker", damping_abs=1.0),
}
ROWS, STEPS = 13, 7


class Block(nn.Module):
    """A stage of a pipeline."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 7), nn.Linear(7, 6)

    def forward(self, x):
        """Map `[N, 6]` to itself."""
        return self.last(torch.tanh(self.first(x)))


def blocks(count: int) -> nn.Sequential:
    """Return the same blocks everywhere."""
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(count)))


def descent(*nets: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer."""
    return torch.optim.SGD([p for net in nets for p in net.parameters()], lr=0.003, momentum=0.9)


def batch(step: int, rows: int) -> tuple[Tensor, ...]:
    """Return inputs and targets of a step."""
    return torch.randn(2, rows, 6, generator=torch.Generator().manual_seed(step)).unbind()


def train(net: nn.Module, part: slice, processes: int) -> None:
    """Train on a part of each batch; the losses of all processes have the mean of all rows."""
    optimizer = descent(net)
    for step in range(STEPS):
        x, y = batch(step, ROWS)
        optimizer.zero_grad()
        ((net(x[part]) - y[part]).square().sum() * processes / ROWS).backward()
        optimizer.step()


def gap(net: nn.Module, other: nn.Module) -> float:
    """Return the largest difference of plain weights, in units of the largest if that is more."""
    one, another = (
        torch.cat([p.detach().flatten() for p in sngd.fold(each).parameters()])
        for each in (net, other)
    )
    # Deep kronecker networks take steps here that make weights of a thousand.
    return ((one - another).abs().max() / another.abs().max().clamp_min(1.0)).item()


def sharded(config: sngd.Config, rank: int, size: int, shard: Callable[[nn.Module], None]) -> float:
    """Train in parts, on uneven parts of each batch."""
    net, alone = (sngd.reconstruct(blocks(2), config) for _ in range(2))
    shard(net)
    cut = 2 * rank  # the last process has the rest
    train(net, slice(cut, cut + 2) if rank < size - 1 else slice(cut, None), size)
    train(alone, slice(None), 1)
    state = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))
    whole = sngd.reconstruct(blocks(2), config)
    whole.load_state_dict(state)
    return gap(whole, alone)


def by_columns(parameter: Tensor) -> Shard:
    """Cut columns where that is even, as it must be."""
    return Shard(int(parameter.dim() > 1 and parameter.shape[1] % dist.get_world_size() == 0))


def shardings(size: int) -> dict[str, Callable[[nn.Module], None]]:
    """Return the ways to shard a network, by name."""
    line = init_device_mesh("cpu", (size,))
    ways = {
        "offloaded": partial(fully_shard, mesh=line, offload_policy=CPUOffloadPolicy(False)),
        "by columns": partial(fully_shard, mesh=line, shard_placement_fn=by_columns),
        "under a policy": partial(fully_shard, mesh=line, mp_policy=MixedPrecisionPolicy(*POLICY)),
    }
    for copies in sorted({1, 2, size}):
        mesh = init_device_mesh("cpu", (copies, size // copies), mesh_dim_names=("all", "part"))
        ways[f"{copies} copies"] = partial(fully_shard, mesh=mesh)
    return ways


POLICY = (torch.float64, torch.float64, torch.float64)


def half_precision(size: int) -> list[float]:
    """Compute in bfloat16 under a policy: the loss before and after, and rows of a step."""
    net = sngd.reconstruct(blocks(2), CONFIG)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float64)
    fully_shard(net, mesh=init_device_mesh("cpu", (size,)), mp_policy=policy)
    optimizer, losses = descent(net), []
    x, y = batch(0, ROWS)
    for _ in range(9):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return [losses[0], losses[-1], net[0].first.weight_fisher.rows_seen / size / len(losses)]


def tensor_parallel_of_others(size: int) -> float:
    """Cut weights that are left plain; the others train as in one process."""
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}

    def network() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 6))
        return sngd.reconstruct(model, CONFIG, overrides={"[01].*": None})

    net, alone = network(), network()
    parallelize_module(net, init_device_mesh("cpu", (size,)), plan)
    for each in (net, alone):
        train(each, slice(None), 1)
    return gap(net[2], alone[2])


SCHEDULES = {
    "ScheduleGPipe": 1,
    "Schedule1F1B": 1,
    "ScheduleInterleaved1F1B": 2,
    "ScheduleInterleavedZeroBubble": 2,
}


def piped(config: sngd.Config, rank: int, size: int, name: str, apart: bool = True) -> float:
    """Train the stages of a pipeline, each reconstructed, or parts of a network that is."""
    of_each = SCHEDULES[name]
    count = size * of_each
    own = [rank + size * turn for turn in range(of_each)]
    alone, net = sngd.reconstruct(blocks(count), config), blocks(count)
    if apart:
        modules = [sngd.reconstruct(net[i], config) for i in own]
    else:
        modules = [sngd.reconstruct(net, config)[i] for i in own]
    stages = [
        pipelining.PipelineStage(module, i, count, torch.device("cpu"))
        for module, i in zip(modules, own, strict=True)
    ]
    schedule = getattr(pipelining, name)(
        stages if of_each > 1 else stages[0], 4, loss_fn=nn.functional.mse_loss
    )
    optimizer, other = descent(*modules), descent(alone)
    for step in range(STEPS):
        x, y = batch(step, 12)
        optimizer.zero_grad()
        given = {"target": y} if count - 1 in own else {}
        schedule.step(*([x] if 0 in own else []), **given)
        optimizer.step()
        other.zero_grad()
        nn.functional.mse_loss(alone(x), y).backward()
        other.step()
    return max(gap(module, alone[i]) for module, i in zip(modules, own, strict=True))


def main(rank: int, size: int, meeting: str) -> None:
    """Print the findings of this process."""
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    gaps = {}
    # Of more processes, in a nightly test, all.
    kinds = KINDS if size > 2 else {"kronecker": KINDS["kronecker"]}
    for kind, config in kinds.items():
        for name, shard in shardings(size).items():
            gaps[f"{name}, {kind}"] = sharded(config, rank, size, shard)
        for name in SCHEDULES if size > 2 else ("ScheduleGPipe", "ScheduleInterleavedZeroBubble"):
            gaps[f"{name}, {kind}"] = piped(config, rank, size, name)
    gaps["parts of a network"] = piped(KINDS["kronecker"], rank, size, "Schedule1F1B", apart=False)
    gaps["tensor parallel of others"] = tensor_parallel_of_others(size)
    print(json.dumps({"gaps": gaps, "half": half_precision(size)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
