"""What every process holds of the others: two processes print what they found, by name."""

import contextlib
import functools
import io
import json
import sys
import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

import sngd_compile as sngd
from backend.compiled import mlp
from sngd_compile.training.sharding import held_here

Batches = Callable[[int], Tensor]
SETTING = sngd.Config(refresh_every=6, observe_every=2, max_rows=None, damping_abs=0.1)
# The local Fisher, and the decay of weights: with some, biases are parted from their weights.
KINDS = {"shared": ("shared", 0.0), "kronecker": ("kronecker", 0.0), "apart": ("kronecker", 0.1)}
ALONE, STEPS, SAVED = 2, 14, 9  # a process with the joint batches; the file lies between refreshes


def start(kind: str) -> nn.Module:
    """Return the same network everywhere."""
    torch.manual_seed(0)
    return sngd.reconstruct(mlp(), SETTING.replace(fisher=KINDS[kind][0]))


def rows(step: int, rank: int) -> Tensor:
    """Return rows of a process, other numbers in each step, and none in some."""
    everything = torch.randn(11, 5, generator=torch.Generator().manual_seed(step))
    cut = 5 * step % 12
    return everything if rank == ALONE else everything[[slice(cut), slice(cut, None)][rank]]


def train(
    net: nn.Module, optimizer: Optimizer, rank: int, steps: range, factor: float = 2.0
) -> None:
    """Train; the gradient is that of the mean over all rows of a step."""
    for step in steps:
        batch = rows(step, rank)
        net.zero_grad()
        (net(batch).square().sum() * factor / 11).backward()
        optimizer.step()


def descent(net: nn.Module, kind: str, divided: bool = False) -> Optimizer:
    """Return the optimizer, or one whose states are divided among the processes."""
    weights = [p for name, p in net.named_parameters() if not name.endswith("bias")]
    biases = [p for name, p in net.named_parameters() if name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": KINDS[kind][1]}, {"params": biases}]
    if divided:
        return ZeroRedundancyOptimizer(groups, SGD, lr=0.02, momentum=0.9)
    return SGD(groups, lr=0.02, momentum=0.9)


def weights(net: nn.Module, kind: str, dtype: torch.dtype = torch.float64) -> list[float]:
    """Return the plain weights, of a sharded network too."""
    state = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))
    whole = start(kind).to(dtype)
    whole.load_state_dict(state)
    return [number for p in sngd.fold(whole).parameters() for number in p.flatten().tolist()]


def alone(kind: str) -> list[float]:
    """Train on all rows in one process."""
    net = start(kind)
    train(net, descent(net, kind), ALONE, range(STEPS), 1.0)
    return weights(net, kind)


def wrapped(net: nn.Module, way: str) -> nn.Module:
    """Prepare a network for two processes."""
    if way == "sharded":
        return fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    return DistributedDataParallel(net)


def walk(rank: int, way: str, kind: str) -> list[float]:
    """Train in two processes."""
    net = start(kind)
    trained = wrapped(net, way)
    train(trained, descent(net, kind, way == "zero"), rank, range(STEPS))
    return weights(net, kind)


@functools.cache
def file_of(rank: int, kind: str, divided: bool) -> bytes:
    """Train in two processes; return what the first saves, alone, in both."""
    net = start(kind)
    optimizer = descent(net, kind, divided)
    train(DistributedDataParallel(net), optimizer, rank, range(SAVED))
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        optimizer.consolidate_state_dict(0)
    held = [None]
    if rank == 0:
        torch.save([part.state_dict() for part in (net, optimizer)], file := io.BytesIO())
        held = [file.getvalue()]
    dist.broadcast_object_list(held, 0)
    return held[0]


def saved(rank: int, kind: str, divided: tuple[bool, bool]) -> tuple[list, nn.Module, Optimizer]:
    """Return the states of the first of two processes, and what shall go on."""
    again = start(kind)
    states = torch.load(io.BytesIO(file_of(rank, kind, divided[0])), weights_only=True)
    return states, again, descent(again, kind, divided[1])


def resumed(rank: int, kind: str, readers: int, divided: bool = False) -> list[float]:
    """Save in the first of two processes, and go on in both, of which `readers` read the file."""
    states, again, other = saved(rank, kind, (divided, divided))
    # Where the first alone reads the file, DistributedDataParallel gives it to the other.
    if rank < readers:
        again.load_state_dict(states[0])
    other.load_state_dict(states[1])
    train(DistributedDataParallel(again), other, rank, range(SAVED, STEPS))
    return weights(again, kind)


def resumed_alone(rank: int, kind: str, divided: bool = False) -> list[float]:
    """Save in two processes, and go on in one on all rows."""
    states, again, other = saved(rank, kind, (divided, False))
    for part, state in zip((again, other), states, strict=True):
        part.load_state_dict(state)
    train(again, other, ALONE, range(SAVED, STEPS), 1.0)
    return weights(again, kind)


def resumed_in_place(rank: int, kind: str) -> list[float]:
    """Go on in a network that has trained otherwise since; the optimizer is loaded first."""
    states, again, other = saved(rank, kind, (False, False))
    trained = DistributedDataParallel(again)
    train(trained, SGD(again.parameters(), lr=0.01, momentum=0.5), rank, range(3))
    other.load_state_dict(states[1])
    again.load_state_dict(states[0])
    train(trained, other, rank, range(SAVED, STEPS))
    return weights(again, kind)


def resumed_sharded(rank: int, kind: str) -> list[float]:
    """Save parts with torch.distributed.checkpoint, and go on."""
    net = wrapped(start(kind), "sharded")
    optimizer = SGD(net.parameters(), lr=0.02)
    train(net, optimizer, rank, range(SAVED))
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder, 0)
    dcp.save(get_model_state_dict(net), checkpoint_id=folder[0])
    again = wrapped(start(kind), "sharded")
    state = get_model_state_dict(again)
    dcp.load(state, checkpoint_id=folder[0])
    set_model_state_dict(again, state)
    train(again, SGD(again.parameters(), lr=0.02), rank, range(SAVED, STEPS))
    train(net, optimizer, rank, range(SAVED, STEPS))
    pair = [torch.tensor(weights(some, kind)) for some in (net, again)]
    return [float((pair[0] - pair[1]).abs().max())]


def narrow(rank: int, way: str) -> list[float]:
    """Refresh parameters in bfloat16 again and again; return how far weights went, early and late.

    And the elements of remainders that lie here, over those of parameters.
    """
    net = sngd.reconstruct(mlp().bfloat16(), SETTING)
    trained, found = wrapped(net, way), []
    for step in range(20):
        trained(rows(step, rank).bfloat16()).square().sum().backward()
        sngd.refresh_(net)
        found.append(torch.tensor(weights(net, "shared", torch.bfloat16)))
    moved = [float((one - found[0]).norm() / found[0].norm()) for one in found]
    parts = [layer.remainders for layer in sngd.fisher_layers(net).values()]
    held = [held_here(part).numel() for pair in parts for part in pair]
    here = [held_here(p).numel() for p in net.parameters()]
    return [max(moved[:8]), max(moved[-8:]), sum(held) / sum(here)]


def refreshed_by_hand(rank: int) -> list[float]:
    """Refresh before any optimizer has stepped: all get one root."""
    net = start("shared")
    trained = DistributedDataParallel(net)
    trained(rows(1, rank)).square().sum().backward()
    sngd.refresh_(net)
    return [float(layer.root.square().sum()) for layer in sngd.fisher_layers(net).values()]


def in_a_part(rank: int) -> list[float]:
    """Reconstruct a part of a network; return the rows of its layers."""
    torch.manual_seed(0)
    net = nn.Sequential(sngd.reconstruct(mlp(), SETTING), nn.Linear(3, 2))
    trained, optimizer = DistributedDataParallel(net), descent(net, "shared")
    train(trained, optimizer, rank, range(5))
    return [float(layer.rows_seen) for layer in sngd.fisher_layers(net).values()]


def collectives(monitor: list[int]) -> contextlib.AbstractContextManager:
    """Count what is added up."""
    original = dist.all_reduce

    @contextlib.contextmanager
    def counted():
        dist.all_reduce = lambda *args, **kwargs: (monitor.append(1), original(*args, **kwargs))[1]
        try:
            yield
        finally:
            dist.all_reduce = original

    return counted()


def sent(rank: int) -> list[float]:
    """Count the calls in steps that are observed and in others."""
    net = start("shared")
    trained, optimizer = DistributedDataParallel(net), descent(net, "shared")
    counts = []
    for step in range(8):
        with collectives(calls := []):
            train(trained, optimizer, rank, range(step, step + 1))
        counts.append(len(calls))
    return counts


def messages(rank: int) -> list[str]:
    """Enter join() in each way."""
    net = start("shared")
    trained = DistributedDataParallel(net)
    with trained.join(enable=False):
        pass
    said = []
    for enter in (trained.join, lambda: dist.algorithms.Join([trained])):
        try:
            enter()
        except sngd.ModelError as error:
            said.append(str(error))
    return said


def main(rank: int, meeting: str) -> None:
    """Print the findings of this process."""
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = {}
    for kind in KINDS:
        expected = torch.tensor(alone(kind))
        walks = {way: walk(rank, way, kind) for way in ("parallel", "sharded", "zero")}
        walks |= {
            "resumed": resumed(rank, kind, 2),
            "read by the first": resumed(rank, kind, 1),
            "resumed alone": resumed_alone(rank, kind),
            "resumed in place": resumed_in_place(rank, kind),
            "zero resumed": resumed(rank, kind, 2, divided=True),
            "zero resumed alone": resumed_alone(rank, kind, divided=True),
        }
        for name, numbers in walks.items():
            gap = (torch.tensor(numbers) - expected).abs().max()
            found[f"{name}, {kind}"] = float(gap)
        found[f"resumed in parts, {kind}"] = resumed_sharded(rank, kind)[0]
    for way in ("parallel", "sharded"):
        found[f"narrow, {way}"] = narrow(rank, way)
    found["roots"] = refreshed_by_hand(rank)
    found["rows of a part"] = in_a_part(rank)
    found["sent"] = sent(rank)
    found["join"] = messages(rank)
    print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[2]), sys.argv[4])
