"""Roots that processes share out, and refreshes that fail in one of them: print what was found."""

import json
import os
import signal
import sys
from collections.abc import Callable
from itertools import pairwise
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sngd_compile as sngd
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.cholesky import CholeskyRoot
from sngd_compile.training import joint_roots
from sngd_compile.training.sharding import held_here

# A refresh for each observed step, so that what is sent can be told from one.
CONFIG = sngd.Config(max_rows=None, early_refreshes=(2,), rank=3, observe_every=100)
KINDS = ["shared", "kronecker", "diagonal", "block", "unit"]


class Net(nn.Module):
    """Layers of many widths, one of them wide enough for a sketch."""

    def __init__(self):
        super().__init__()
        widths = [5, 3, 7, 2, 13, 6, 4, 3]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.norm = nn.LayerNorm(3)

    def forward(self, x):
        """Map `[N, 5]` to `[N, 3]`."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.norm(x)


def trained(way: str, kind: str, rank: int) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    """Train a little, so that there are roots and momenta, and observe one pass more."""
    torch.manual_seed(0)
    net = sngd.reconstruct(Net(), CONFIG.replace(fisher=kind, activation="tanh"))
    if way == "sharded":
        wrapped = fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    else:
        wrapped = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01, momentum=0.9)
    for step in range(3):
        train(wrapped, optimizer, rank, step)
    for layer in sngd.fisher_layers(net).values():
        layer.schedule.restore(0, 0)  # the next step is observed
    train(wrapped, optimizer, rank, 9)
    return net, wrapped, optimizer


def train(wrapped: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    """Take a step on rows that the others do not have, another number of them."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    optimizer.zero_grad()
    wrapped(torch.randn(3 + 2 * rank, 5, generator=generator)).square().sum().backward()
    optimizer.step()


def held(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """List what a refresh writes to, as far as it lies here."""
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    gradients = [p.grad for p in net.parameters()]
    found = [held_here(t).detach() for t in (*net.parameters(), *gradients, *momenta)]
    return [t.clone() for t in (*found, *net.buffers())]


def roots(net: nn.Module) -> list[Tensor]:
    """List the roots and what else must be the same in all processes."""
    layers = sngd.fisher_layers(net).values()
    return [t for f in layers for t in (*f.root_buffers.buffers(), f.factor, f.absolute_damping)]


def are_equal_everywhere(tensors: list[Tensor]) -> bool:
    """Compare with the first process, bit by bit."""
    flat = torch.cat([t.double().flatten() for t in tensors])
    first = flat.clone()
    dist.broadcast(first, 0)
    return torch.equal(flat, first)


def at_call(number: int, action: Callable[[], None], original: Callable) -> Callable:
    """Do something at one call of a function."""
    calls = []

    def called(*args):
        calls.append(1)
        if len(calls) == number:
            action()
        return original(*args)

    return called


def failing(error: BaseException) -> Callable[[], None]:
    """Return what raises."""

    def fail():
        raise error

    return fail


PLACES = {
    "absorb": (FisherLayer, "absorb_", 4),
    "decompose": (CholeskyRoot, "take_", 2),
    "room": (joint_roots._Share, "make_room", 1),
    "move": (CholeskyRoot, "moves_to", 3),
}
ERRORS = {
    "LinAlgError": torch.linalg.LinAlgError("it does not converge"),
    "OutOfMemoryError": torch.OutOfMemoryError("none left"),
    "KeyboardInterrupt": KeyboardInterrupt(),
}


def outcome(call: Callable[[], object]) -> str:
    """Return the class of what is raised."""
    try:
        call()
    except BaseException as error:
        return type(error).__name__
    return ""


def failed(rank: int, place: str, error: BaseException, prepared: tuple) -> list:
    """Refresh with an error in one process: what is raised, and whether all is as it was."""
    net, _, optimizer = prepared
    owner, name, number = PLACES[place]
    before = held(net, optimizer)
    action = failing(error) if rank == 1 else lambda: None
    with mock.patch.object(owner, name, at_call(number, action, getattr(owner, name))):
        said = outcome(lambda: sngd.refresh_(net))
    return [said, all(map(torch.equal, held(net, optimizer), before))]


def failures(rank: int) -> dict[str, list]:
    """Let each place fail in each way; in the end refresh, and train on."""
    found = {}
    for way in ("parallel", "sharded"):
        prepared = trained(way, "shared", rank)
        for place in PLACES:
            for name, error in ERRORS.items():
                found[f"{way}, {place}, {name}"] = failed(rank, place, error, prepared)
        net, wrapped, optimizer = prepared
        before = roots(net)[0].clone()
        sngd.refresh_(net)
        train(wrapped, optimizer, rank, 11)
        is_new = not torch.equal(before, roots(net)[0])
        found[f"{way}, in the end"] = [is_new, are_equal_everywhere(roots(net))]
    return found


def interrupted(rank: int) -> list:
    """Press Ctrl-C in one process in the middle: all finish the refresh first."""
    net, *_ = trained("parallel", "shared", rank)
    before = roots(net)[0].clone()
    action = (lambda: os.kill(os.getpid(), signal.SIGINT)) if rank == 1 else (lambda: None)
    with mock.patch.object(CholeskyRoot, "take_", at_call(1, action, CholeskyRoot.take_)):
        said = outcome(lambda: sngd.refresh_(net))
    return [said, not torch.equal(before, roots(net)[0]), are_equal_everywhere(roots(net))]


def counted(rank: int) -> dict[str, list]:
    """Count what a refresh decomposes and sends, by kind; say whether all got the same."""
    found = {}
    for kind in KINDS if dist.get_world_size() > 2 else KINDS[:2]:
        net, *_ = trained("parallel", kind, rank)
        calls = [mock.Mock(side_effect=dist.all_reduce), mock.Mock(side_effect=dist.broadcast)]
        decomposed = mock.Mock(side_effect=joint_roots.next_roots)
        with (
            mock.patch.multiple(dist, all_reduce=calls[0], broadcast=calls[1]),
            mock.patch.object(joint_roots, "next_roots", decomposed),
        ):
            sngd.refresh_(net)
        (layers,) = decomposed.call_args.args
        given = [call.args[0].nbytes for call in calls[0].call_args_list]
        sent = [c.args[0].nbytes for c in calls[1].call_args_list if c.kwargs["group_src"] == rank]
        found[kind] = [
            len(layers),
            *(call.call_count for call in calls),
            are_equal_everywhere([*roots(net), *net.parameters()]),
            sum(given) + sum(sent),
            sngd.explain(net).sent_bytes,
        ]
    return found


def main(rank: int, size: int, meeting: str) -> None:
    """Print the findings of this process."""
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    found = {"counted": counted(rank)}
    if size == 2:
        found |= {"failures": failures(rank), "interrupted": interrupted(rank)}
    print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
